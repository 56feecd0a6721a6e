"""Traces of several jobs in one process and one forward: which may, what holds a block to it, whose rows are whose."""
