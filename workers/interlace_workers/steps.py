"""How long a job's steps took, as its child says: three doubles, which hostile code may have written."""

import math
import struct
from collections.abc import Sequence
from itertools import pairwise

NAMES = ("deserialize", "forward", "serialize")
_BODY = struct.Struct("!3d")


def encode(times: Sequence[float]) -> bytes:
    """From the times on one clock at which the first step began and each one ended."""
    return _BODY.pack(*(end - start for start, end in pairwise(times)))


def decode(body: bytes, elapsed: float) -> list[tuple[str, float]]:
    """Each step and its seconds; nothing unless these are three durations that fit into ``elapsed`` seconds."""
    if len(body) != _BODY.size:
        return []
    seconds = _BODY.unpack(body)
    # A comparison with NaN is false.
    if not all(0 <= one < math.inf for one in seconds) or sum(seconds) > elapsed:
        return []
    return list(zip(NAMES, seconds, strict=True))
