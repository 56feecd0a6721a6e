"""What is looked at, and what is said where something is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interlace_deploy import kernel
from interlace_deploy.commands import doctor
from interlace_deploy.parts.ray_access import access
from interlace_state.config import Config
from interlace_state.settings.services import RayConfig

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]


def test_all_that_is_needed_is_here(interlace: Interlace) -> None:
    done = interlace("doctor", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["healthy"], done.stderr) == (0, True, "")
    found = {finding["what"]: finding for finding in report["findings"]}
    assert found["torch"]["state"] == found["nnsight"]["state"] == found["redis server"]["state"] == "ok"
    assert found["hub"]["detail"] == "not asked: HF_HUB_OFFLINE is set"
    assert {"cores", "memory", "disk", "gpu", "default model", "kernel: landlock", "kernel: seccomp"} <= set(found)


def test_for_people(interlace: Interlace, tmp_path: Path) -> None:
    done = interlace("doctor", INTERLACE_CACHE_DIR=str(tmp_path), HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "smollm2-135m-instruct: not here yet" in done.stdout
    assert f"GiB free for {tmp_path}\n" in done.stdout
    assert f"GiB free for {tmp_path}/hub/hub\n" in done.stdout
    assert "default model: interlace models pull smollm2-135m-instruct" in lines
    assert lines[-1] == "Nothing that is needed is missing."


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_disk_of_the_hubs_models_is_where_the_hub_puts_them(name: str, tmp_path: Path) -> None:
    environ = {"HOME": "/nobody", "PATH": os.environ["PATH"], name: str(tmp_path)}
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", environ["HOME"])
        assert str(doctor.hub_cache(environ)) == said.stdout.strip()


def test_something_needed_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    declared = ["pydantic>=999", "no-such-thing[extra]<2,>=1; extra == 'workers'", "no-such-tool; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: declared)
    config = Config(cache_dir=tmp_path)
    found = {finding.what: finding for finding in doctor.examine(config, {"HF_HUB_OFFLINE": "1"})}
    assert (found["no-such-thing"].state, found["no-such-thing"].remedy) == (
        "missing",
        "pip install 'no-such-thing[extra]<2,>=1'",
    )
    assert found["pydantic"].state == "missing"
    assert found["pydantic"].detail.endswith("but >=999 is needed")
    assert "no-such-tool" not in found


def test_a_package_that_is_broken_is_no_reason_to_break(interlace: Interlace, tmp_path: Path) -> None:
    """Whoever asks the doctor has a broken installation."""
    (tmp_path / "huggingface_hub.py").write_text("raise ValueError('half installed')\n")
    done = interlace("doctor", "--json", PYTHONPATH=str(tmp_path))
    found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert (found["default model"]["state"], found["default model"]["detail"]) == (
        "note",
        "cannot look: ValueError: half installed",
    )


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(doctor.examine(Config(), {"HF_ENDPOINT": "http://127.0.0.1:9"}))
    hub = next(finding for finding in found if finding.what == "hub")
    assert hub.state == "note"
    assert hub.detail.startswith("http://127.0.0.1:9 cannot be reached (")


def test_a_gateway_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    found = list(doctor.examine(Config(), {"HF_ENDPOINT": "http://127.0.0.1:9/hf"}))
    hub = next(finding for finding in found if finding.what == "hub")
    assert hub.detail.startswith("https://huggingface.co cannot be reached (")
    assert hub.detail.endswith(
        "HF_ENDPOINT is http://127.0.0.1:9/hf, a gateway's own, which has no weights: `interlace up` leaves it out"
    )


def test_which_redis_and_which_ray(interlace: Interlace, tmp_path: Path) -> None:
    found = {finding["what"]: finding for finding in json.loads(interlace("doctor", "--json").stdout)["findings"]}
    assert "one of our own, on a socket and with a password" in found["redis server"]["detail"]
    assert "one of our own, which asks for a token, on this machine only" in found["ray cluster"]["detail"]
    done = interlace(
        *("doctor", "--json"),
        REDIS_URL="redis://:geheim@host:1/0",
        INTERLACE_RAY__ADDRESS="auto",
        INTERLACE_STORE__URL=str(tmp_path),
    )
    found = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["redis server"]["detail"] == "configured: redis://:***@host:1/0"
    assert "geheim" not in done.stdout
    assert (found["ray cluster"]["state"], found["ray cluster"]["detail"]) == (
        "note",
        "at auto, RAY_AUTH_MODE=(not set)",
    )
    assert "RAY_AUTH_MODE=token" in found["ray cluster"]["remedy"]


def test_a_ray_that_asks_for_a_token_is_fine() -> None:
    config = Config(ray=RayConfig(address="auto"))
    assert access(config, {}).warning
    assert access(config, {"RAY_AUTH_MODE": "disabled"}).warning
    assert not access(config, {"RAY_AUTH_MODE": "token"}).warning
    assert not access(Config(runtime="process"), {}).warning


@pytest.mark.parametrize(
    ("version", "bounds", "fine"),
    [
        ("0.8.1", ">=0.8.1,<0.9", True),
        ("0.9", ">=0.8.1,<0.9", False),
        ("0.8", ">=0.8.1,<0.9", False),
        ("2.13.0+cpu", ">=2.6", True),
        ("9.1.2.post2", "==9.1.2.post2", True),
        ("5.22.2", ">=5.22,<5.23", True),
        ("5.23.0", ">=5.22,<5.23", False),
        ("6", "==6.0", True),
        ("1.0", "", True),
    ],
)
def test_versions(version: str, bounds: str, fine: bool) -> None:
    assert doctor.allowed(version, bounds) is fine


def test_kernel_features_are_said() -> None:
    found = kernel.features()
    assert {"release", "landlock", "seccomp", "user namespaces", "cgroups"} == set(found)
    assert all(found.values())
