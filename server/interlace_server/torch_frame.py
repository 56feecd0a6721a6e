"""Bytes that ``torch.load`` reads, written without torch and without pickle.

torch's stream format is five pickles in a row: a magic number, a version, a description of the writer's machine,
the object, and the keys of its tensors' storages (none here). We write the few opcodes of pickle protocol 4 that
plain values need, so the gateway can hand over a result that it never reads.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Plain: TypeAlias = "bool | int | float | str | bytes | Saved | Hole | Mapping[str, Plain] | list[Plain] | None"


@dataclass(frozen=True)
class Hole:
    """Stands for so many bytes that others put there."""

    size: int


_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_WRITER: Plain = {
    "protocol_version": _VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


@dataclass(frozen=True)
class Saved:
    """What torch.save wrote: whoever loads the stream has the value in its place, which we never look at."""

    data: bytes | Hole


def encode(value: Plain) -> bytes:
    """One stream that ``torch.load(..., weights_only=False)`` turns back into ``value``.

    Raises TypeError for anything that is not plain.
    """
    (whole,) = encode_around(value)
    return whole


def encode_around(value: Plain) -> list[bytes]:
    """As `encode`, in the parts before, between and behind the holes in ``value``."""
    parts: list[list[bytes]] = [[]]
    of_stream: tuple[Plain, ...] = (_MAGIC, _VERSION, _WRITER, value, [])
    for piece in (piece for one in of_stream for piece in (b"\x80\x04", *_opcodes(one), b".")):
        if piece is None:
            parts.append([])
        else:
            parts[-1].append(piece)
    return [b"".join(part) for part in parts]


def _opcodes(value: Plain) -> Iterator[bytes | None]:
    """None where a hole is."""
    if value is None:
        yield b"N"
    elif isinstance(value, bool):
        yield b"\x88" if value else b"\x89"
    elif isinstance(value, int):
        yield _integer(value)
    elif isinstance(value, float):
        yield struct.pack(">cd", b"G", value)
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        yield struct.pack("<cI", b"X", len(data))
        yield data
    elif isinstance(value, bytes):
        yield _begin_bytes(len(value))
        yield value
    elif isinstance(value, Hole):
        yield _begin_bytes(value.size)
        yield None
    elif isinstance(value, Saved):
        # A call, made where the stream is loaded: `torch.storage._load_from_bytes`, which torch's own pickles name.
        yield b"ctorch.storage\n_load_from_bytes\n"
        yield from _opcodes(value.data)
        yield b"\x85R"
    elif isinstance(value, Mapping):
        yield b"}("
        for key, item in value.items():
            yield from _opcodes(key)
            yield from _opcodes(item)
        yield b"u"
    elif isinstance(value, list):
        yield b"]("
        for item in value:
            yield from _opcodes(item)
        yield b"e"
    else:
        raise TypeError(f"{type(value).__name__} is not a plain value")


def _begin_bytes(size: int) -> bytes:
    return struct.pack("<cI", b"B", size) if size < 1 << 32 else struct.pack("<cQ", b"\x8e", size)


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return struct.pack("<ci", b"J", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return struct.pack("<cI", b"\x8b", len(data)) + data
