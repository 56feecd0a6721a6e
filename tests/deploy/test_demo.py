"""The demo's client knows of nothing but the demo's gateway."""

from pathlib import Path

import pytest

from interlace_deploy.commands import demo
from interlace_deploy.problems import CommandProblem
from interlace_state.config import Config


def test_what_the_client_sees() -> None:
    environ = {
        "PATH": "/bin",
        "http_proxy": "http://proxy",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "secret",
        "NDIF_API_KEY": "secret",
        "INTERLACE_REDIS__URL": "redis://:secret@host",
    }
    assert demo._client_environment("http://127.0.0.1:1", Path("/t/hf"), environ) == {
        "PATH": "/bin",
        "http_proxy": "http://proxy",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "NDIF_HOST": "http://127.0.0.1:1",
        "HF_ENDPOINT": "http://127.0.0.1:1/hf",
        "HF_HOME": "/t/hf",
        "PYTHONUNBUFFERED": "1",
    }


def test_it_meets_no_other_interlace(tmp_path: Path) -> None:
    usual = Config()
    own = demo._own(usual, tmp_path, "process")
    assert (own.gateway.port, own.state_dir, own.cache_dir) == (0, tmp_path / "state", usual.cache_dir)
    assert (own.redis.url, own.runtime, own.models[0].source) == (None, "process", "smollm2-135m-instruct")


def test_it_finds_the_example_of_its_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo._find_example() == Path(__file__).parents[2] / "examples" / "first_trace.py"
    monkeypatch.setattr(demo, "_EXAMPLE", Path("examples/none.py"))
    with pytest.raises(CommandProblem, match="run `interlace demo` in a checkout of Interlace"):
        demo._find_example()
