"""A style learned from a few examples (`customize.style`), and put onto pictures (`images.stylise`)."""
