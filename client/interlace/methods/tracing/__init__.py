"""Causal tracing: which states of a forward carry a fact."""
