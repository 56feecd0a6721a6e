"""Small tables of numbers out of a safetensors file, without a tensor library."""

import io
import sys
from array import array
from collections.abc import Mapping, Sequence

from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.safetensors import read_header

MOST_NUMBERS = 20_000  # of one table
_TYPES = {"F32": "f", "F64": "d"}


def grids_of(data: bytes, name: str) -> Mapping[str, Sequence[Sequence[float]]]:
    """The tensors [rows, columns] of a file that are few and wide enough to be drawn. Raises InvalidArtifact."""
    header = read_header(io.BytesIO(data), len(data), name)
    found = {}
    for key, tensor in header.tensors.items():
        if tensor.dtype not in _TYPES or len(tensor.shape) != 2 or not 0 < tensor.numbers <= MOST_NUMBERS:
            continue
        values = array(_TYPES[tensor.dtype], data[header.data_start + tensor.start : header.data_start + tensor.end])
        if len(values) != tensor.numbers:
            raise InvalidArtifact(f"{key} in {name} has {len(values)} numbers; expected {tensor.numbers}.")
        if sys.byteorder == "big":
            values.byteswap()
        wide = tensor.shape[1]
        found[key] = [list(values[start : start + wide]) for start in range(0, tensor.numbers, wide)]
    return found
