"""How a picture comes out of noise: what a diffusion pipeline has after each of its steps."""
