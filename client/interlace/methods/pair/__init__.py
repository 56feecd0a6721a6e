"""Pair Customization: a style learned from one pair of pictures, and drawing with it."""
