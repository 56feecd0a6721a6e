"""Linear relational embeddings: how far a relation is one affine map from a subject's state to its object's."""
