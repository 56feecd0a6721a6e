"""The model lake: what is known of all that is hosted or kept, and what may be asked of it."""
