"""Which models are hosted, where, and by how many replicas: the placement loop and what it decides by."""
