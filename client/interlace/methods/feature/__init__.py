"""Features of a sparse dictionary, told so that a person can name them."""
