"""Servers that stock clients travel to, and the models on both sides of the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnsight
import pytest
import running
import tiny
import tiny_families
import torch
from nnsight import CONFIG, TransformersModel
from nnsight.modeling import huggingface

import interlace

#: Everything that is hosted, on a Ray of our own.
_MODELS = (tiny.GPT2, tiny.LLAMA, tiny.NEOX, tiny.BERT)
_INLINE_BYTES = 256 << 10
_GATEWAY = {"port": 0, "drain_seconds": 1}


def hosted(repo_id: str, source: str | None = None) -> dict[str, Any]:
    """A configuration's entry for a tiny model."""
    return {"source": source or repo_id, "repo_id": repo_id, "task": tiny.task_of(repo_id), "threads": 1}


@pytest.fixture(scope="session", autouse=True)
def stock_client() -> None:
    """nnsight as it was installed, quiet, and with nothing to ask the hub."""
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    CONFIG.APP.DEBUG = False  # nnsight reads pytest's own -v as a wish for it
    CONFIG.API.APIKEY = None
    # Where tests are modules of a folder that is no package, nnsight must be told that they are local.
    nnsight.register("tests")
    names = (*_MODELS, tiny.BROKEN, tiny.SPOILED, tiny.LAB)
    huggingface._ID_CACHE.update({name: name for name in names})


@pytest.fixture(scope="session")
def ray_server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    """Ray Serve hosts every tiny model; results over 256 KiB go by URL."""
    configuration = {
        "runtime": "ray",
        "models": [hosted(name) for name in _MODELS],
        "store": {"inline_bytes": _INLINE_BYTES},
        "gateway": _GATEWAY,
    }
    with running.interlace(home, configuration, seconds=400) as server:
        yield server


@pytest.fixture(scope="session")
def process_server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    """Plain processes host a model with tight limits, a broken one, and one that no hub has."""
    configuration = {
        "runtime": "process",
        "models": [hosted(tiny.GPT2), hosted(tiny.BROKEN), hosted(tiny.LAB, str(tiny_models))],
        "limits": {
            "wall_seconds": 10,
            "memory_bytes": 512 << 20,
            "result_bytes": 8 << 20,
            "payload_bytes": 4 << 20,
            "log_bytes": 64 << 10,
        },
        "gateway": _GATEWAY,
    }
    with running.interlace(home, configuration, seconds=300) as server:
        yield server


@pytest.fixture(scope="session")
def families_server(home: Path, families: Path) -> Iterator[running.Running]:
    """Plain processes host the models of `tiny_families`, and an encoder."""
    huggingface._ID_CACHE.update({name: name for name in tiny_families.ALL})
    interlace.add_tasks()
    names = tiny_families.TRAINED if running.RUNTIME == "ray" else (*tiny_families.ALL, tiny.BERT)
    configuration = {"runtime": running.RUNTIME, "models": [hosted(name) for name in names], "gateway": _GATEWAY}
    with running.interlace(home, configuration, seconds=400) as server:
        yield server


@pytest.fixture
def on_ray(ray_server: running.Running, monkeypatch: pytest.MonkeyPatch) -> running.Running:
    """Stock clients of this test talk to the server on Ray."""
    monkeypatch.setattr(CONFIG.API, "HOST", ray_server.url)
    return ray_server


@pytest.fixture
def on_processes(process_server: running.Running, monkeypatch: pytest.MonkeyPatch) -> running.Running:
    """Stock clients of this test talk to the server of plain processes."""
    monkeypatch.setattr(CONFIG.API, "HOST", process_server.url)
    return process_server


class Models:
    """Each model once with weights and once without, for all tests; see `parity.Lab`."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def local(self, repo_id: str, **options: Any) -> Any:
        return self._make(repo_id, dispatch=True, **options)

    def client(self, repo_id: str, **options: Any) -> Any:
        return self._make(repo_id, **options)

    def _make(self, repo_id: str, **options: Any) -> Any:
        key = repr((repo_id, sorted(options.items())))
        if key not in self._made:
            self._made[key] = TransformersModel(repo_id, task=tiny.task_of(repo_id), **options)
        return self._made[key]


@pytest.fixture(scope="session")
def models(tiny_models: Path, stock_client: None) -> Models:
    return Models()


@pytest.fixture
def on_families(families_server: running.Running, monkeypatch: pytest.MonkeyPatch) -> running.Running:
    """Stock clients of this test talk to the server of the other families."""
    monkeypatch.setattr(CONFIG.API, "HOST", families_server.url)
    return families_server


@pytest.fixture
def lab(models: Models, on_ray: running.Running) -> Models:
    """Both sides of every tiny model; remote traces go to the server on Ray."""
    return models
