"""Where every test finds its models: a Hugging Face cache of the session's own.

It is chosen here, at import, because the folders below import transformers, which reads these variables only then.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import http_clients
import pytest
from hypothesis import HealthCheck, settings

# A short path: unix sockets, whose names have room for 107 bytes, lie below it.
_HOME = Path(tempfile.mkdtemp(prefix="interlace-"))

os.environ |= {
    "HF_HOME": str(_HOME / "hf"),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "NNSIGHT_CONFIG": str(_HOME / "no-nnsight-config.yaml"),
    # httpx reads a whole bundle of certificates for each client that is made, some 20 ms, also for plain HTTP; the
    # stock client makes one for each request. From a folder it reads them when it needs one, and no test does.
    "SSL_CERT_DIR": str(_HOME / "no-certificates"),
}
for _name in ("NDIF_HOST", "NDIF_API_KEY", "HF_ENDPOINT", "REDIS_URL", "SSL_CERT_FILE"):
    os.environ.pop(_name, None)

# No machine is too slow for a property, and the same examples are tried each time.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
http_clients.be_patient()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes one runs a folder: its servers are started once, and have room in 24 GiB."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0].rpartition("/")[0]

    return ByFolder(config, log)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def home() -> Path:
    """The session's folder, with a short path."""
    return _HOME


@pytest.fixture(scope="session")
def tiny_models(home: Path) -> Path:
    """Every tiny model is in the cache; the plain folder of the lab's own one."""
    import tiny

    lab = home / "lab" / "own-model"
    tiny.write_all(home / "hf" / "hub", lab)
    return lab


@pytest.fixture(scope="session")
def families(home: Path, tiny_models: Path) -> Path:
    """The cache, with the models of other families in it, too."""
    import tiny_families

    tiny_families.write(home / "hf" / "hub")
    return home / "hf" / "hub"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis, of which each test takes a prefix of its own."""
    import redis_server

    with redis_server.running(tmp_path_factory.mktemp("redis")) as url:
        yield url
