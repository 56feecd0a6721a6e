"""A server with secrets planted around it, an attacker with a stock client, and whether the service is unharmed."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import httpx
import nnsight
import psutil
import pytest
import running
import tiny
import torch
from nnsight import CONFIG, TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from nnsight.modeling import huggingface

_LIMITS = {
    "wall_seconds": 6,  # what walks all of memory takes 2
    "memory_bytes": 512 << 20,
    "unpacked_bytes": 16 << 20,
    "result_bytes": 8 << 20,
    "payload_bytes": 4 << 20,
    "log_bytes": 64 << 10,
    "streamed_values": 200,
}


def _secret(kind: str) -> str:
    return f"planted-{kind}-{secrets.token_hex(16)}"


@dataclass(frozen=True)
class Target:
    """A server, where its secrets lie, and the processes that strangers must not reach."""

    server: running.Running
    #: What hostile code is told about it: the worst case.
    paths: dict[str, str]
    pids: list[int]
    secrets: tuple[str, ...]

    def holds(self, text: str) -> None:
        """Fails where something that was planted is in what a client received."""
        leaked = [secret for secret in (*self.secrets, *hostile.MARK.findall(text)) if secret in text]
        assert not leaked, text

    def answers(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=120) as http:
            assert http.get("/ping").json() == "pong"
            assert "RUNNING" in http.get("/status").text


@pytest.fixture(scope="session")
def target(home: Path, tiny_models: Path) -> Iterator[Target]:
    """Plain processes host a tiny model behind every layer, with tight limits."""
    kept, around, told = _secret("file"), _secret("environment"), _secret("payload")
    own = home / "operator"
    own.mkdir()
    (own / "id_rsa").write_text(kept)
    model = {"source": tiny.GPT2, "repo_id": tiny.GPT2, "task": "text-generation", "threads": 1}
    configuration = {
        "runtime": "process",
        "models": [model],
        "limits": _LIMITS,
        "isolation": "required",
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    environ = {"PLANTED_TOKEN": around, "HF_TOKEN": around}
    with running.interlace(home, configuration, seconds=300, environ=environ) as server:
        (server.state_dir / "secret").write_text(kept)
        weights = next((home / "hf" / "hub").glob(f"models--{tiny.GPT2.replace('/', '--')}/snapshots/*/*.safetensors"))
        paths = {
            "secret": str(server.state_dir / "secret"),
            "key": str(own / "id_rsa"),
            "configuration": str(server.state_dir / "interlace.yaml"),
            "password": "/etc/passwd",
            "weights": str(weights),
            "state": str(server.state_dir),
            "home": str(Path.home()),
        }
        sockets = [str(path) for path in server.state_dir.rglob("*") if path.is_socket()]
        paths |= {f"socket {number}": path for number, path in enumerate(sockets)}
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        yield Target(server, paths, [one.pid for one in family], (kept, around, told))


@pytest.fixture(scope="session")
def client(tiny_models: Path) -> Any:
    """A stock client's model, without weights."""
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    CONFIG.APP.DEBUG = False  # nnsight reads pytest's own -v as a wish for it
    CONFIG.API.APIKEY = None
    nnsight.register("tests")
    huggingface._ID_CACHE[tiny.GPT2] = tiny.GPT2
    return TransformersModel(tiny.GPT2, task=tiny.task_of(tiny.GPT2))


def logits_of(client: Any) -> torch.Tensor:
    with client.trace(hostile.PROMPT, remote=True):
        logits = client.lm_head.output.detach().save()
    return logits


@pytest.fixture(scope="session")
def first(client: Any, target: Target) -> torch.Tensor:
    """What an honest request was answered before any hostile one."""
    patch = pytest.MonkeyPatch()
    patch.setattr(CONFIG.API, "HOST", target.server.url)
    told = target.secrets[2]
    with client.trace(hostile.PROMPT, remote=True):
        marked = nnsight.save(told)  # somebody's payload, with a secret in it
    logits = logits_of(client)
    patch.undo()
    assert marked == told
    return logits


class Siege:
    """What the fixture `siege` offers: an attacker's means, and the proof that they came to nothing."""

    def __init__(self, client: Any, target: Target, first: torch.Tensor) -> None:
        self.client = client
        self.target = target
        self._first = first

    def run(self, attack: hostile.Attack) -> None:
        """Strike; every step must come to what the attack says, with no secret in any of it."""
        names = {"paths": self.target.paths, "pids": self.target.pids, "url": self.target.server.url}
        try:
            found = hostile.strike(self.client, attack.source, **names)
        except RemoteError as error:
            text = str(error)
            self.target.holds(text)
            assert attack.fails is not None, text
            assert re.search(attack.fails, text), text
        else:
            text = hostile.text_of(found)
            self.target.holds(text)
            assert attack.fails is None, f"no failure, but {text}"
            assert found, "nothing was tried"
            assert set(attack.reports) <= set(found), text
            for step, outcome in found.items():
                if step in attack.reports:
                    assert re.fullmatch(attack.reports[step], outcome), f"{step}: {text}"
                else:
                    assert outcome in attack.refusals, f"{step}: {text}"
        self.unharmed()

    def unharmed(self) -> None:
        """The next honest request gives the same bits, and the service answers."""
        assert torch.equal(logits_of(self.client), self._first)
        self.target.answers()


@pytest.fixture
def siege(client: Any, target: Target, first: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Siege:
    monkeypatch.setattr(CONFIG.API, "HOST", target.server.url)
    return Siege(client, target, first)
