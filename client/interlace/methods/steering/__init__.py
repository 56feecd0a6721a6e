"""Steering: a direction that is added to the states of a model, what it does, and what it breaks."""
