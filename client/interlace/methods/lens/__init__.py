"""The logit lens: what a model would say after each of its blocks."""
