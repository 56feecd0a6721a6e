"""Sparse autoencoders: trained next to the weights (`sae.train`), measured with and without labels (`sae.eval`)."""
