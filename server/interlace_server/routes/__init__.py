"""One resource a file; a route is parse, one call into the state, shape the answer."""
