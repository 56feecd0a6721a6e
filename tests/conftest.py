"""Where every test finds its models: a Hugging Face cache of the session's own, chosen before transformers is imported."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HOME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    # A short path: unix sockets, which have room for 107 bytes, lie below it.
    home = Path(tempfile.mkdtemp(prefix="interlace-"))
    config.stash[_HOME] = home
    os.environ |= {
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "NNSIGHT_CONFIG": str(home / "no-nnsight-config.yaml"),
    }
    for name in ("NDIF_HOST", "NDIF_API_KEY", "HF_ENDPOINT", "REDIS_URL"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := config.stash.get(_HOME, None):
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def home(pytestconfig: pytest.Config) -> Path:
    """The session's folder, with a short path."""
    return pytestconfig.stash[_HOME]


@pytest.fixture(scope="session")
def tiny_models(home: Path) -> Iterator[Path]:
    """Every tiny model is in the cache; yields the plain folder of the lab's own one."""
    import tiny

    lab = home / "lab" / "own-model"
    tiny.write_all(home / "hf" / "hub", lab)
    yield lab
