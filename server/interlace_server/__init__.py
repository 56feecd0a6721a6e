"""The gateway: stock nnsight's remote protocol in front of Redis and the file store."""
