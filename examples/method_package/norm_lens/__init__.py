"""How long the residual stream is behind each block: an example of a method in a package of its own."""
