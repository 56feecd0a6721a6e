"""A server whose jobs are methods, its clients, and the models that it hosts, here."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import method_packages
import nnsight
import pytest
import running
import tiny
import torch
from gateway_keys import key_for
from method_cases import MODELS
from nnsight import CONFIG, TransformersModel
from nnsight.modeling import huggingface
from nnsight.modeling.diffusion import DiffusionModel

import interlace
from interlace.methods import catalogue


@pytest.fixture(scope="session", autouse=True)
def stock_client() -> None:
    """nnsight, quiet, and with nothing to ask the hub."""
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    CONFIG.APP.DEBUG = False
    nnsight.register("tests")
    huggingface._ID_CACHE.update({tiny.GPT2: tiny.GPT2})


@pytest.fixture(scope="session")
def packages(home: Path) -> Iterator[Path]:
    """A folder with packages of methods, which this process finds, too."""
    folder = home / "packages"
    method_packages.install(folder)
    yield folder
    sys.path.remove(str(folder))
    catalogue.cache_clear()


@pytest.fixture(scope="session")
def method_server(home: Path, tiny_models: Path, packages: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "models": [{"source": source, "repo_id": name, "threads": 1, "slots": 2} for name, source in MODELS.items()],
        "lifetimes": {"lease": 6},
        "methods": {
            "checkpoint_seconds": 0.1,
            "cancel_grace": 5,
            "request_bytes": 1 << 20,
            "checkpoint_bytes": 1 << 20,
        },
        "tenants": {"small": {"artifact_bytes": 64 << 10, "kept_artifacts": 2}},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=300, environ={"PYTHONPATH": str(packages)}) as server:
        yield server


@pytest.fixture(scope="session")
def keys(method_server: running.Running) -> dict[str, str]:
    return {tenant: key_for(method_server, tenant) for tenant in ("lab-a", "lab-b", "small")}


@pytest.fixture
def client(method_server: running.Running, keys: dict[str, str]) -> Iterator[interlace.Client]:
    with interlace.connect(method_server.url, keys["lab-a"]) as client:
        yield client


@pytest.fixture
def other(method_server: running.Running, keys: dict[str, str]) -> Iterator[interlace.Client]:
    """Of another tenant."""
    with interlace.connect(method_server.url, keys["lab-b"]) as client:
        yield client


@pytest.fixture
def small(method_server: running.Running, keys: dict[str, str]) -> Iterator[interlace.Client]:
    """Of a tenant that may keep two small artifacts."""
    with interlace.connect(method_server.url, keys["small"]) as client:
        yield client


@pytest.fixture(scope="session")
def local(tiny_models: Path) -> Any:
    """The hosted model, here."""
    model = TransformersModel(tiny.GPT2, task="text-generation", dispatch=True)
    model._module.eval()
    return model


@pytest.fixture(scope="session")
def here(local: Any) -> Callable[[str], Any]:
    """Each hosted model, here, by its repo id."""

    @cache
    def pipeline(name: str) -> Any:
        return DiffusionModel(MODELS[name], dispatch=True)

    return lambda name: local if name == tiny.GPT2 else pipeline(name)
