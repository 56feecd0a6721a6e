"""Linear probes on the states of a model, and what they say of tokens that a model forgets: its implicit vocabulary."""
