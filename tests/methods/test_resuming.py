"""Promise: a job that trains, and whose worker is killed, goes on from its checkpoint and ends as if nothing had been.

The models are tiny, and so are the runs: what is held is that not one number differs.
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pytest
import running
import tiny
import torch
from method_cases import PROMPTS

import interlace
from interlace.protocol.event import Progress

DEADLINE = 300.0  # seconds
_SAE: dict[str, Any] = {
    "data": PROMPTS * 4,
    "layer": 1,
    "steps": 500,
    "batch": 8,
    "buffer": 40,
    "d_sae": 24,
    "lr": 1e-3,
}
_SAE |= {"lr_warmup": 10, "sparsity_warmup": 10}
_ELM = {
    "concept_texts": [f"{prompt} Paris." for prompt in PROMPTS],
    "retain_texts": ["Two plus two is four, and three plus three is six.", "John gave a drink to Mary."],
    "concept": {"expert_prefixes": ["One who knows: "], "novice_prefixes": ["One who does not: "]},
    "lora": {"layers": [1, 2], "rank": 2},
    "fluency": {"redirects": ["Well,"], "prompt_chars": [10, 20], "new_tokens": [3, 5], "samples": 2},
    "steps": 16,
    "batch": 2,
    "evaluation": {"relearn_steps": 0, "generations": 0},
}
_PROBES = {
    "texts": [f"{prompt} {number}" for number in range(8) for prompt in PROMPTS],
    "target": {"kind": "label", "labels": ["tower", "ruin"] * 8},
    "layers": [0, 1],
    "epochs": 60,
    "batch": 4,
    "lr": 0.01,
}


def _killed(job: Any, server: running.Running, replicas: Sequence[psutil.Process]) -> list[int]:
    """Kill the workers once a checkpoint is kept of it; gives the steps that it told, to its end.

    It tells of its steps twice a second, in which a machine may have done all of them.
    """
    kept, end = server.state_dir / "store" / "checkpoints" / job.id / "state", time.monotonic() + DEADLINE
    while not kept.exists():
        assert time.monotonic() < end, "no checkpoint is kept"
        time.sleep(0.001)
    for replica in replicas:
        replica.kill()
    job.wait(DEADLINE)
    return [event.step for event in job.events() if isinstance(event, Progress)]


@pytest.mark.parametrize(
    ("method", "params"),
    [("sae.train", _SAE), ("elm.erase", _ELM), ("probe.train", _PROBES)],
    ids=["sae", "elm", "probes"],
)
def test_a_killed_worker_costs_nothing_but_time(
    method: str, params: dict[str, Any], client: interlace.Client, method_server: running.Running
) -> None:
    whole = client.run(method, model=tiny.GPT2, params=params, seed=3, follow=False)
    replicas = method_server.replicas()  # ahead of the job, which goes on while we look
    job = client.submit_method(method, model=tiny.GPT2, params=params, seed=3)
    told = _killed(job, method_server, replicas)
    assert client.job(job.id).attempts >= 2
    again = job.result(DEADLINE)
    turns = [after for before, after in itertools.pairwise(told) if after <= before]
    assert all(one > 1 for one in turns), f"it began anew: {told}"
    assert again.metrics == whole.metrics
    assert again.tables == whole.tables
    (one,), (other,) = ([client.artifacts.open(name) for name in result.artifacts] for result in (whole, again))
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(other.tensors[name], tensor, rtol=0, atol=0)
