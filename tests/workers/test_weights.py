"""A model's tensors in memory of 2 MiB pages: the same numbers, tied as before, and lying to cache lines as asked."""

import mmap

import pytest
import torch
from torch import nn

from interlace_workers.reserve import allocate
from interlace_workers.weights import into_huge_pages

LINE = 64  # bytes
SHIFT = 8  # bytes: as a safetensors file lies where it is mapped


class Mapped(nn.Module):
    """Weights in a mapped piece of memory, two of them tied, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.arange(999, dtype=torch.float32)
        piece = mmap.mmap(-1, SHIFT + numbers.nbytes)
        self.weight = nn.Parameter(torch.frombuffer(piece, dtype=torch.float32, offset=SHIFT))
        self.weight.data.copy_(numbers)
        self.tied = self.weight
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("steps", torch.arange(7))


@pytest.mark.parametrize(("realign", "shift"), [(True, 0), (False, SHIFT)])
def test_where_tensors_lie(realign: bool, shift: int) -> None:
    module = Mapped()
    assert module.weight.data_ptr() % LINE == SHIFT
    former = module.weight.data_ptr()
    into_huge_pages(module, realign=realign)
    assert module.weight.data_ptr() != former
    assert module.weight.data_ptr() % LINE == shift
    assert module.tied is module.weight
    assert torch.equal(module.weight, torch.arange(999, dtype=torch.float32))
    assert torch.equal(module.get_buffer("steps"), torch.arange(7))
    assert module.weight.untyped_storage().nbytes() == 999 * 4


@pytest.mark.parametrize("reserved", [64 << 10, mmap.PAGESIZE // 4])
def test_reserved_memory_is_cut_to_what_they_take_and_left_where_they_take_more(reserved: int) -> None:
    module, arena = Mapped(), allocate(reserved)
    moved = into_huge_pages(module, arena)
    assert torch.equal(module.weight, torch.arange(999, dtype=torch.float32))
    fits = reserved >= moved
    assert len(arena) == (moved if fits else reserved)
    assert (arena[: module.weight.nbytes] == module.weight.detach().numpy().tobytes()) == fits
