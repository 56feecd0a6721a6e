"""What can be typed, and what each mistake says."""

import importlib.metadata
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interlace_deploy.address import hidden

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]


def one_line(text: str) -> str:
    """The only line of an error. Never a traceback."""
    assert text.count("\n") == 1, text
    assert text.startswith("interlace: ")
    return text


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(interlace: Interlace, word: str) -> None:
    assert interlace(word).stdout.strip() == importlib.metadata.version("interlace")


@pytest.mark.parametrize("command", ["version", "status", "down"])
def test_small_commands_import_nothing_big(command: str, environ: dict[str, str]) -> None:
    program = (
        "import sys; from interlace_deploy.cli import main; code = main([sys.argv[1]]);"
        "big = {'torch', 'ray', 'nnsight', 'transformers', 'uvicorn', 'fastapi'} & set(sys.modules);"
        "assert not big, big; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, command], env=environ, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == {"version": 0, "status": 3, "down": 0}[command]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--prot", "1"], "unrecognized arguments: --prot 1"),
        (["up", "--port", "many"], "invalid int value: 'many'"),
        (["up", "--runtime", "slurm"], "'slurm' (choose from 'ray', 'process')"),
        (["up", "--port", "70000"], "command line: `gateway.port`: Input should be less than or equal to 65535"),
        (["upp"], "'upp' (choose from 'up'"),
        ([], "COMMAND"),
        (["status", "--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
    ],
)
def test_a_wrong_command_line(interlace: Interlace, words: list[str], said: str) -> None:
    done = interlace(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in one_line(done.stderr)


@pytest.mark.parametrize("command", ["up", "down", "status", "doctor", "demo"])
def test_a_wrong_configuration(interlace: Interlace, tmp_path: Path, command: str) -> None:
    (tmp_path / "my.yaml").write_text("gateway:\n  prt: 1\n")
    done = interlace(command, "--config", "my.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "my.yaml, line 2: unknown key `gateway.prt`. Did you mean `port`?" in one_line(done.stderr)


def test_where_the_configuration_comes_from(interlace: Interlace, tmp_path: Path) -> None:
    (tmp_path / "interlace.yaml").write_text("here: 1\n")
    (tmp_path / "named.yaml").write_text("named: 1\n")
    (tmp_path / "given.yaml").write_text("given: 1\n")
    assert "unknown key `here`" in interlace("status").stderr
    assert "unknown key `named`" in interlace("status", INTERLACE_CONFIG="named.yaml").stderr
    assert "unknown key `given`" in interlace("status", "--config", "given.yaml", INTERLACE_CONFIG="named.yaml").stderr


def test_a_wrong_environment(interlace: Interlace) -> None:
    done = interlace("status", INTERLACE_GATEWAY__PRT="1")
    assert done.returncode == 2
    assert "environment variable INTERLACE_GATEWAY__PRT: unknown key `gateway.prt`." in one_line(done.stderr)


def test_status_of_nothing(interlace: Interlace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = interlace("status", INTERLACE_GATEWAY__PORT=str(port))
    assert (done.returncode, done.stdout) == (3, "")
    assert f"Nothing runs at http://127.0.0.1:{port}. Start it with: interlace up" in one_line(done.stderr)


def test_status_of_a_host_that_is_none(interlace: Interlace) -> None:
    done = interlace("status", INTERLACE_GATEWAY__HOST="interlace.invalid")
    assert done.returncode == 3
    assert "http://interlace.invalid:0 does not answer" in one_line(done.stderr)


def test_down_with_nothing_running(interlace: Interlace, state_dir: Path) -> None:
    done = interlace("down")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Nothing is running (state {state_dir}).\n"


@pytest.mark.usefixtures("nothing_left")
def test_a_port_in_use(interlace: Interlace, state_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = interlace("up", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Port {port} on 127.0.0.1 is in use: choose another with --port" in one_line(done.stderr)
    assert not (state_dir / "redis").exists()


def test_an_address_that_is_not_ours(interlace: Interlace) -> None:
    done = interlace("up", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "192.0.2.1 is not an address of this machine: choose another with --host." in done.stderr


def test_a_ray_that_asks_nobody_for_a_token_is_told(interlace: Interlace, tmp_path: Path) -> None:
    """Before anything else; here the address ends it."""
    elsewhere = {"INTERLACE_RAY__ADDRESS": "ray.lab:6379", "INTERLACE_STORE__URL": str(tmp_path)}
    said = interlace("up", "--host", "192.0.2.1", **elsewhere).stderr
    assert "WARNING: Ray at ray.lab:6379 executes code for whoever reaches it" in said
    assert "RAY_AUTH_MODE=token" in said
    assert "WARNING" not in interlace("up", "--host", "192.0.2.1", RAY_AUTH_MODE="token", **elsewhere).stderr


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("rediss://:geheim@host:1/0", "rediss://:***@host:1/0"),
        ("redis://me:ge@heim@host/0?db=1&password=geheim#x", "redis://me:***@host/0?db=1&password=***#x"),
        ("unix:///run/redis.sock?password=geheim&db=1", "unix:///run/redis.sock?password=***&db=1"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert hidden(url) == shown


def test_a_redis_that_does_not_answer(interlace: Interlace, tmp_path: Path) -> None:
    done = interlace("up", INTERLACE_REDIS__URL=f"unix://user:geheim@{tmp_path}/none.sock")
    assert done.returncode == 1
    assert "none.sock" in done.stderr
    assert "geheim" not in done.stderr


@pytest.mark.parametrize("words", [["up"], ["up", "--detach"]])
def test_what_hosts_asks_no_gateway_for_weights(interlace: Interlace, tmp_path: Path, words: list[str]) -> None:
    ours = {"NDIF_HOST": "https://interlace.lab", "HF_ENDPOINT": "https://interlace.lab/hf"}
    done = interlace(*words, INTERLACE_REDIS__URL=f"unix://{tmp_path}/none.sock", **ours)
    assert done.returncode == 1
    assert done.stderr.count("HF_ENDPOINT is https://interlace.lab/hf, a gateway's own, which has no weights") == 1


@pytest.mark.parametrize("words", [["up"], ["up", "--detach"], ["down"], ["status"]])
def test_a_state_folder_that_cannot_be(interlace: Interlace, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    done = interlace(*words, INTERLACE_STATE_DIR=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "Not a directory" in one_line(done.stderr)
