"""ROME: change one fact by a rank-one edit of one projection."""
