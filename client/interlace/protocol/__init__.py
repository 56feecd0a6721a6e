"""The words that all parts share. Imports pydantic and nothing else."""
