"""docker-compose.yml: one published port, on this machine only, and a configuration that loads."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from interlace_state.config_file import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_only_the_gateway_is_published_and_only_here(compose: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert published == {"redis": [], "gateway": ["127.0.0.1:8000:8000"], "workers": []}
    assert compose["services"]["redis"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}


def test_redis_has_a_password_from_the_env_file(compose: dict[str, Any]) -> None:
    assert compose["services"]["redis"]["environment"] == {"REDIS_PASSWORD": "${REDIS_PASSWORD:?set it in .env}"}
    assert "REDIS_PASSWORD=\n" in (ROOT / "deploy" / "examples" / "compose.env").read_text()


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
    assert "'.[server]'" in images["gateway"]
    assert "'.[workers]'" in images["worker"]
    assert "torch==" not in images["gateway"]
