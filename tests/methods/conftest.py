"""A server whose jobs are methods, and its client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
import torch
from nnsight import TransformersModel

import interlace


@pytest.fixture(scope="session")
def method_server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "models": [{"source": tiny.GPT2, "repo_id": tiny.GPT2, "threads": 1}],
        "lifetimes": {"lease": 2},
        "methods": {"checkpoint_seconds": 0, "cancel_grace": 2, "request_bytes": 1 << 20},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=180) as server:
        yield server


@pytest.fixture
def client(method_server: running.Running) -> Iterator[interlace.Client]:
    with interlace.connect(method_server.url) as client:
        yield client


@pytest.fixture(scope="session")
def local(tiny_models: Path) -> Any:
    """The hosted model, here."""
    torch.set_num_threads(1)
    model = TransformersModel(tiny.GPT2, task="text-generation", dispatch=True)
    model._module.eval()
    return model
