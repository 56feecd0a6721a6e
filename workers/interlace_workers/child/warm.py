"""Do ahead what every first trace of a process pays for: imports in the zygote, page faults in each waiting child."""

import ctypes
import io
import linecache
import sys
from typing import Any

import torch
from nnsight.tracing.globals import BLOCKS, SOURCES

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT = 32 << 20  # bytes: the size up to which malloc learns to keep blocks by itself
_TOUCHED = 8 << 20  # bytes


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, from the start as much as it would learn to, and give it some to keep.

    A forward allocates and frees the same few megabytes in each layer. Without this each is new to the process, and
    costs a page fault for 4 KiB: half of the faults of a minimal trace.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT)
        torch.zeros(_TOUCHED, dtype=torch.uint8)


def warm_up(model: Any) -> None:
    """Trace one token and serialize what it saves: 45 ms of lazy imports and caches less in each child, and
    60 ms of page faults less in its job.

    Leaves no trace of itself: nnsight's caches of block sources are emptied. A model that does not take bare token
    ids is left cold.
    """
    tokens = torch.zeros((1, 1), dtype=torch.long)
    try:
        with torch.no_grad(), model.trace(tokens):
            output = model.output.save()
        torch.save({"output": output}, io.BytesIO(), pickle_protocol=4)
    except Exception as error:  # noqa: BLE001 - any model may refuse this input in its own way, and need not be warm
        print(f"not warmed up: {type(error).__name__}: {error}", file=sys.stderr)
    model.interleaver.cancel()
    SOURCES.clear()
    BLOCKS.clear()
    linecache.clearcache()
