"""Activation patching between two prompts: which states carry what is different between them."""
