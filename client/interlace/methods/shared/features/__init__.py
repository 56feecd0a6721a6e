"""Features of sparse dictionaries: the coder, where a feature is on, and how that is shown."""
