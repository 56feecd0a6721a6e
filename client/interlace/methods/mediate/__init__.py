"""Mediation: which parts of a model, which units or which directions carry an effect from an input to an answer."""
