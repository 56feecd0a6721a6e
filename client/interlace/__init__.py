"""Interlace: remote intervention in hosted models.

Stock nnsight needs nothing of this package: set ``NDIF_HOST`` to a gateway and write ``remote=True``.
"""

__version__ = "0.1.0"
