"""Promise: an adapter that a request names is on for this request, with its local values, and then gone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
import tiny_adapters
import torch
from nnsight import CONFIG, TransformersModel
from parity import assert_same

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def shelf(home: Path) -> Path:
    """A folder of the server whose adapters may be named by their paths."""
    folder = home / "shelf"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def server(home: Path, tiny_models: Path, shelf: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "models": [{"source": name, "repo_id": name, "threads": 1, "slots": 2} for name in (tiny.GPT2, tiny.LLAMA)],
        "adapters": {"folders": [str(shelf)], "hub": ["allowed/*"], "max_rank": 64},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=180) as server:
        yield server


@pytest.fixture(autouse=True)
def to_server(server: running.Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)


@pytest.mark.parametrize("repo_id", [tiny.GPT2, tiny.LLAMA])
def test_with_an_adapter_it_is_as_locally(repo_id: str, shelf: Path, stock_client: None) -> None:
    folder = tiny_adapters.write(shelf / repo_id.rpartition("/")[2], repo_id, 1)
    local = TransformersModel(repo_id, task="text-generation", peft=str(folder), dispatch=True)
    client = TransformersModel(repo_id, task="text-generation", peft=str(folder))

    def trace(model: Any, remote: Any) -> dict[str, Any]:
        with model.trace(PROMPT, remote=remote):
            logits = model.lm_head.output.save()
        return {"logits": logits}

    here = trace(local, False)
    assert_same(here, trace(client, True))
    bare = trace(TransformersModel(repo_id, task="text-generation"), True)
    assert not torch.allclose(bare["logits"], here["logits"], atol=1e-3)
