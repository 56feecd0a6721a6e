"""What a model's weights take in fewer bits than a type of torch's has, from the shapes in its checkpoint.

Only the matrices of linear layers are packed. Embeddings, the head, norms and stacked experts stay in 16 bits.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

#: Bits of a number. With 4 of them goes a float32 for each 64 numbers; the scales of 8 bits, one a row, are few.
_BITS = {"int8": 8.0, "fp8": 8.0, "nf4": 4.5, "fp4": 4.5}
_REST_BITS = 16
#: What tables of positions are called. Their length may be a layer's width, so that it says nothing.
_POSITIONS = ("position", "wpe")


def size_bytes(shapes: Iterable[tuple[str, Sequence[int]]], config: dict[str, Any], quantization: str) -> int:
    """Bytes of tensors with these names and ``shapes``, held as one of nnsight's quantizations."""
    words = frozenset(_vocabularies(config))
    bits = 0.0
    for name, shape in shapes:
        packed = len(shape) == 2 and name.endswith(".weight") and not words.intersection(shape)
        packed = packed and not any(part in name for part in _POSITIONS)
        bits += math.prod(shape) * (_BITS[quantization] if packed else _REST_BITS)
    return int(bits) // 8


def _vocabularies(config: dict[str, Any]) -> Iterator[int]:
    """The sizes of vocabularies in a configuration, and in those inside of it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _vocabularies(value)
        elif name == "vocab_size" and type(value) is int:
            yield value
