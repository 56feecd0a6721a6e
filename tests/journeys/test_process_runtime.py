"""Promise: the replica is the same program without Ray: plain processes give the same values."""

from typing import Any

import cases
import nnsight
import pytest
import running
import tiny
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend
from parity import Case, Lab, assert_same
from transformers import AutoTokenizer


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.__name__)
def test_the_same_values(case: Case, models: Lab, on_processes: running.Running) -> None:
    assert_same(case(models.local(tiny.GPT2), False), case(models.client(tiny.GPT2), True))


def test_a_model_from_a_plain_folder(models: Lab, on_processes: running.Running, tiny_models: Any) -> None:
    """What a lab trained itself: the client builds it from the folder, the server knows it by a name."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models)
    local = TransformersModel(str(tiny_models), task="text-generation", tokenizer=tokenizer, dispatch=True)
    client = TransformersModel(str(tiny_models), task="text-generation", tokenizer=tokenizer)
    key = models.client(tiny.GPT2).to_model_key().replace(tiny.GPT2, tiny.LAB)
    with local.trace(cases.PROMPT):
        expected = local.lm_head.output.detach().save()
    with client.trace(cases.PROMPT, backend=RemoteBackend(key, env=client._remoteable_get_env())):
        logits = client.lm_head.output.detach().save()
    torch.testing.assert_close(logits, expected)


def test_what_failed_to_load_is_told(on_processes: running.Running) -> None:
    status = nnsight.status()
    assert status[tiny.GPT2]["state"] == "RUNNING"
    assert status[tiny.LAB]["state"] == "RUNNING"
    assert tiny.BROKEN not in status or status[tiny.BROKEN]["state"] == "UNHEALTHY"
    assert any(tiny.BROKEN in line for line in on_processes.lines)
