"""Circuits of sparse features: the splice, effects and edges, the artifact and its picture."""
