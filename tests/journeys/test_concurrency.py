"""Promise: many clients at once each get their own values."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import running
import subprocess_client
import tiny
import torch
from nnsight import TransformersModel
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
SCRIPT = """
import sys
import torch
from nnsight import TransformersModel
number = float(sys.argv[1])
model = TransformersModel("interlace-tests/gpt2-tiny", task="text-generation")
for _ in range(3):
    with model.trace("The Eiffel Tower is in the city of", remote=True):
        model.transformer.h[1].output[:] = number
        seen = model.transformer.h[1].output.detach().mean().save()
        logits = model.lm_head.output.detach().save()
    assert seen == number, (seen, number)
print(f"{logits.double().sum().item():.6f}")
"""


def test_clients_in_processes_of_their_own(lab: Lab, on_ray: running.Running, tmp_path: Any) -> None:
    script = tmp_path / "client.py"
    script.write_text(SCRIPT)
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda n: subprocess_client.run(on_ray.url, script, str(n)), range(2)))
    local = lab.local(tiny.GPT2)
    for number, text in enumerate(said):
        with local.trace(PROMPT):
            local.transformer.h[1].output[:] = number
            logits = local.lm_head.output.detach().save()
        assert float(text.split()[-1]) == pytest.approx(logits.double().sum().item(), rel=1e-4)


def test_eight_clients_of_one_model(lab: Lab, on_ray: running.Running) -> None:
    """A model object belongs to one thread at a time; each thread has its own."""

    def ask(number: int) -> list[float]:
        client, seen = TransformersModel(tiny.GPT2, task="text-generation"), []
        for turn in range(4):
            with client.trace(PROMPT, remote=True):
                client.transformer.h[1].output[:] = number + turn / 8
                value = client.transformer.h[1].output.detach().mean().save()
            seen.append(value.item())
        return seen

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert found == [[number + turn / 8 for turn in range(4)] for number in range(8)]


def test_clients_of_different_models(lab: Lab, on_ray: running.Running) -> None:
    def ask(repo_id: str) -> torch.Tensor:
        client = TransformersModel(repo_id, task=tiny.task_of(repo_id))
        for _ in range(4):
            with client.trace(PROMPT, remote=True):
                logits = client.output.logits.detach().save()
        return logits

    names = [tiny.GPT2, tiny.LLAMA, tiny.NEOX]
    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(ask, names), strict=True))
    for name in names:
        local = lab.local(name)
        with local.trace(PROMPT):
            logits = local.output.logits.detach().save()
        torch.testing.assert_close(found[name], logits)
