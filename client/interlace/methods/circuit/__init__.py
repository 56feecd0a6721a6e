"""Sparse feature circuits (2403.19647): which features carry a behaviour, and how they feed each other."""
