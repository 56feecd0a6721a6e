"""The `interlace` command: starts, watches and stops the parts as processes."""
