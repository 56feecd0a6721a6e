"""Artifacts that the parent has handed over, read from their descriptors: this process has no files."""

import mmap
import os
from collections.abc import Sequence

import torch

from interlace.methods.base import Opened
from interlace.methods.shared.files import said_of
from interlace.protocol.adapter import parse_object
from interlace.protocol.kinds import longest_config
from interlace.protocol.safetensors import Header, read_header
from interlace_workers.order import Adapter, Order, Use

#: A type's word in a safetensors file -> torch's.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NOTHING = Header({}, {}, 0)


def read(adapter: Adapter, fd: int) -> tuple[bytes, Header, dict[str, torch.Tensor]]:
    """What lies behind a descriptor, which is closed; its tensors are views of a private mapping. Or MemoryError."""
    with open(fd, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            mapped = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise MemoryError(f"adapter {adapter.name} has {size:,} bytes: {error.strerror}") from None
    config = mapped.read(adapter.config_bytes)
    if size == adapter.config_bytes:
        return config, _NOTHING, {}
    header = read_header(mapped, size - adapter.config_bytes, adapter.name)  # type: ignore[arg-type]  # it reads alike
    start = adapter.config_bytes + header.data_start
    tensors = {}
    for name, one in header.tensors.items():
        if one.numbers:
            flat = torch.frombuffer(mapped, dtype=DTYPES[one.dtype], count=one.numbers, offset=start + one.start)
            tensors[name] = flat.reshape(one.shape)
        else:
            tensors[name] = torch.empty(one.shape, dtype=DTYPES[one.dtype])
    return config, header, tensors


def opened(adapter: Adapter, fd: int) -> Opened:
    """An artifact, read. Its descriptor is closed."""
    config, header, tensors = read(adapter, fd)
    longest = longest_config(adapter.kind)
    said = parse_object(config, adapter.name, longest) if config else said_of(header.metadata)
    return Opened(adapter.kind, tensors, said, adapter.name)


def of_use(order: Order, fds: Sequence[int], use: Use) -> list[tuple[Adapter, int]]:
    """The artifacts of an order that are there for something, with their descriptors."""
    return [(adapter, fd) for adapter, fd in zip(order.adapters, fds, strict=True) if adapter.use == use]
