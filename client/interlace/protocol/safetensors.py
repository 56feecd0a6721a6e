"""What a safetensors file says of itself: its header is JSON, and is read here without a tensor library.

A file starts with eight bytes, the little-endian length of the header. The header names each tensor's type, shape and
place; tensors follow without a gap. Whatever is not so is refused before anybody makes room for a tensor.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from interlace.protocol.errors import InvalidArtifact

#: A type's word -> bytes of one number.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
LONGEST_HEADER = 4 << 20  # bytes
_LONGEST_NAME = 512  # characters
_MOST_DIMENSIONS = 8
_NAME = re.compile(r"[\x21-\x7e]+")
_PREFIX = 8  # bytes of the length


@dataclass(frozen=True)
class Tensor:
    """One tensor's description."""

    dtype: str
    shape: tuple[int, ...]
    #: Bytes from the end of the header.
    start: int
    end: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A file's table of contents."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    #: Where the first tensor begins in the file.
    data_start: int

    @property
    def n_params(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors.values())


def read_header(file: BinaryIO, size: int, name: str) -> Header:
    """The header of a file of ``size`` bytes, which is read from its start. Raises InvalidArtifact, with ``name``."""
    prefix = file.read(_PREFIX)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _PREFIX or length > size - _PREFIX:
        raise InvalidArtifact(f"{name} is no safetensors file: it is shorter than it says.")
    if length > LONGEST_HEADER:
        raise InvalidArtifact(f"The header of {name} has {length:,} bytes; at most {LONGEST_HEADER:,} are read.")
    try:
        fields = json.loads(file.read(length), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f"{name} is no safetensors file: its header is no JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise InvalidArtifact(f"{name} is no safetensors file: its header is no JSON object.")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidArtifact(f"`__metadata__` of {name} must be texts by name.")
    tensors = {key: _tensor(key, value, name) for key, value in fields.items()}
    _check_places(tensors, size - _PREFIX - length, name)
    return Header(tensors, metadata, _PREFIX + length)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _tensor(key: str, said: Any, name: str) -> Tensor:
    if len(key) > _LONGEST_NAME or not _NAME.fullmatch(key):
        raise InvalidArtifact(
            f"A tensor's name in {name} is {key[:64]!r}; expected up to {_LONGEST_NAME} plain letters."
        )
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidArtifact(f"{key} in {name} must have `dtype`, `shape` and `data_offsets`, and nothing else.")
    dtype, shape, place = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise InvalidArtifact(f"{key} in {name} is of the type {str(dtype)[:32]!r}; known are: {', '.join(SIZES)}.")
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise InvalidArtifact(f"The shape of {key} in {name} is {str(shape)[:64]}; expected up to 8 whole numbers.")
    if not _are_counts(place) or len(place) != 2:
        raise InvalidArtifact(
            f"The place of {key} in {name} is {str(place)[:64]}; expected its first byte and its end."
        )
    if math.prod(shape) * SIZES[dtype] != place[1] - place[0]:
        raise InvalidArtifact(
            f"{key} in {name} has the shape {list(shape)} of {dtype} but {place[1] - place[0]:,} bytes."
        )
    return Tensor(dtype, tuple(shape), place[0], place[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(one) is int and 0 <= one < 1 << 48 for one in values)


def _check_places(tensors: Mapping[str, Tensor], size: int, name: str) -> None:
    """The tensors fill the rest of the file: no byte is two tensors', and none is nobody's."""
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            raise InvalidArtifact(f"{key} in {name} begins at byte {tensor.start:,} of the data; expected {end:,}.")
        end = tensor.end
    if end != size:
        raise InvalidArtifact(f"The tensors of {name} end at byte {end:,} of its data, which has {size:,} bytes.")
