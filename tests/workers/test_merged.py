"""What a shared forward leaves behind, seen in the process that runs it."""

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from nnsight.modeling.transformers import TransformersModel
from parties import Capture

from interlace.protocol.frames import FrameKind
from interlace_workers.child.loading.model import load
from interlace_workers.child.merging import merged
from interlace_workers.child.merging.slab import NotMergeable
from interlace_workers.order import Load, Order


def test_a_shared_forward_keeps_nothing_for_a_backward_pass(tiny_models: Path, home: Path, tmp_path: Path) -> None:
    (path,) = (home / "hf" / "hub" / f"models--{tiny.LLAMA.replace('/', '--')}" / "snapshots").iterdir()
    model = load(Load(str(path), "text-generation", "float32", trust_remote_code=False, threads=1))
    client, seen, told = TransformersModel(tiny.LLAMA, task="text-generation"), [], []
    members = []
    for number in range(2):
        backend = Capture()
        with client.trace([5, 9, 13, 17 + number], backend=backend):
            client.lm_head.output.save()
        ends = [os.open(tmp_path / f"{number}-{end}", os.O_RDWR | os.O_CREAT) for end in ("in", "out", "told", "said")]
        os.pwrite(ends[0], backend.payload, 0)
        order = Order(compress=True, unpacked_bytes=1 << 20, result_bytes=1 << 20)
        members.append(merged.Member(order, *ends))

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen.append(output)

    def tell(events: int, kind: FrameKind, body: bytes) -> None:
        told.append(kind)

    model.model._module.model.norm.register_forward_hook(keep)
    merged.run(model, members, [], tell)
    assert told == [FrameKind.RUNNING, FrameKind.RUNNING, FrameKind.DONE, FrameKind.DONE]
    (hidden,) = seen
    assert hidden.shape[1] == 4
    assert hidden.requires_grad
    with pytest.raises(NotMergeable, match="backward"):
        hidden.sum().backward()
