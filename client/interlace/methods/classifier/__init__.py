"""Classifiers on a model's states, and what they look at."""
