"""What can be typed after `interlace`: a command a file, or a few of one kind."""
