"""The meeting place of gateways and workers: all that touches Redis and the file store."""
