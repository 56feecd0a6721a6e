"""Which images taught a model to draw one (`attribute.images`)."""
