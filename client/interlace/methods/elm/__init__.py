"""Erasure of Language Memory: a low-rank adapter that makes a model write as one who never knew a concept."""
