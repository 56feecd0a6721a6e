"""Words alone share a forward in a vision-language model; a picture beside them does not keep them from it."""

from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel
from parties import Capture, together
from tiny_families import LLAVA, picture

from interlace_workers.executors.party import MergingExecutor
from interlace_workers.order import Load

TASK = "image-text-to-text"
TOKENS = [[5, 9, 13, 17, 21, 25], [6, 7, 8, 9, 10, 11], [300, 2, 77, 4, 120, 6]]


def words(client: Any, ids: list[int], backend: Any = None) -> Any:
    with client.trace(torch.tensor([ids]), backend=backend):
        client.model.language_model.layers[0].output[:, -1] *= 0.5
        logits = client.lm_head.output.detach().save()
    return backend.payload if backend else logits


def seen(client: Any, backend: Any = None) -> Any:
    with client.trace("<image> What is it?", images=[picture()], backend=backend):
        logits = client.lm_head.output.detach().save()
    return backend.payload if backend else logits


async def test_the_words_share_and_the_picture_runs_alone(families: Path, tmp_path: Path) -> None:
    (path,) = (families / f"models--{LLAVA.replace('/', '--')}" / "snapshots").iterdir()
    client = TransformersModel(LLAVA, task=TASK)
    local = TransformersModel(LLAVA, task=TASK, dispatch=True)
    expected = [seen(local), *(words(local, ids) for ids in TOKENS)]
    payloads = [seen(client, Capture()), *(words(client, ids, Capture()) for ids in TOKENS)]
    executor = MergingExecutor(Load(str(path), TASK, "float32", trust_remote_code=False, threads=1))
    await executor.start()
    try:
        runs = await together(executor, payloads, tmp_path)
    finally:
        await executor.stop()
    assert [run.merged for run in runs] == [0, 3, 3, 3]
    for run, logits in zip(runs, expected, strict=True):
        torch.testing.assert_close(run.saved["logits"], logits)
