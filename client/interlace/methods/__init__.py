"""Published methods as functions on a model: the same in a notebook and as a job next to the weights."""
