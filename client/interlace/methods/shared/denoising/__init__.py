"""Diffusion pipelines as methods see them: passes, prices, adapters."""
