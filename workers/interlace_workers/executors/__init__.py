"""Where a request runs: one interface, one executor a file."""
