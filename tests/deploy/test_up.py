"""A whole Interlace, as `interlace up` starts, watches and stops it. Real parts, a tiny model."""

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hub_server
import psutil
import pytest

from interlace.protocol.event import Ended
from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_deploy.commands.up import for_clients
from interlace_state.config import Config
from interlace_state.config_file import load
from interlace_state.models import ModelCard
from interlace_state.settings.services import RedisConfig
from interlace_state.store import open_state

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]
Until = Callable[[Callable[[], Any]], Any]
Alive = Callable[[], list[str]]
Foreground = Callable[..., "subprocess.Popen[str]"]

DEADLINE = 120.0  # seconds

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def foreground(environ: dict[str, str], tmp_path: Path, tiny_models: Path) -> Iterator[Foreground]:
    """Start `interlace up --runtime process` as in a terminal, in a folder with a configuration file."""
    started: list[subprocess.Popen[str]] = []

    def start(**configuration: object) -> "subprocess.Popen[str]":
        asked = {"runtime": "process", "models": [{"source": str(tiny_models)}], **configuration}
        (tmp_path / "interlace.yaml").write_text(json.dumps(asked))
        with (tmp_path / "stderr").open("w") as stderr:
            words = [sys.executable, "-m", "interlace_deploy", "up"]
            process = subprocess.Popen(
                words,
                env=environ,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready http://127.0.0.1:"), line
    return line.split()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=60) as response:
            return bool(json.load(response)["ready"])
    except OSError:
        return False


def pasted(said: str) -> list[str]:
    """What a notebook and a shell have in NDIF_HOST and HF_ENDPOINT, when the lines for them are pasted there."""
    [python] = re.findall("in a notebook: (.*)", said)
    [shell] = re.findall("in a shell: (.*)", said)
    show = "print(os.environ['NDIF_HOST'], os.environ['HF_ENDPOINT'])"
    commands = ([sys.executable, "-c", f"{python}; {show}"], ["sh", "-c", f'{shell}; echo "$NDIF_HOST" "$HF_ENDPOINT"'])
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]


def part(state_dir: Path, module: str) -> psutil.Process | None:
    """The part that runs this module for this state folder; None while none does."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if module in words and any(str(state_dir) in word for word in words):
            return process
    return None


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_detached_from_up_to_down(
    interlace: Interlace, tiny_models: Path, state_dir: Path, until: Until, alive: Alive
) -> None:
    done = interlace("up", "--model", tiny_models, "--runtime", "process", "--detach")
    assert done.returncode == 0, done.stderr
    url = done.stdout.removeprefix("ready ").strip()
    assert done.stdout == f"ready {url}\n"
    assert [line.split()[0] for line in done.stderr.splitlines() if not line.startswith(" ")] == [
        "redis",
        "gateway",
        "workers",
    ]
    assert pasted(done.stderr) == [f"{url} {url}/hf\n"] * 2

    status = json.loads(interlace("status", "--json").stdout)
    assert (status["url"], status["ready"]) == (url, True)
    [model] = status["models"]
    assert (model["repo_id"], model["state"], len(model["replicas"])) == ("local/own-model", "ready", 1)
    assert model["replicas"][0]["resident_bytes"] > 1 << 20
    lines = interlace("status").stdout.splitlines()
    assert lines[0] == f"Interlace at {url} (process {status['pid']}): ready"
    assert lines[2].split()[:7] == ["local/own-model", "main", "text-generation", "float32", "ready", "1", "0"]

    config = state_dir / "run" / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text())["gateway"]["port"] == int(url.rpartition(":")[2])
    password = urlsplit(json.loads(config.read_text())["redis"]["url"]).password or ""
    assert len(password) > 40
    made = interlace("keys", "create", "--tenant", "lab")
    assert made.returncode == 0
    shown = [status, lines, done.stderr, made.stderr, interlace("doctor").stdout]
    processes = psutil.Process(status["pid"]).children(recursive=True)
    assert len(processes) >= 3
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            shown.append((process.cmdline(), process.environ()))

    for words in (["up"], ["up", "--detach"]):
        second = interlace(*words)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"Interlace runs already at {url} (process {status['pid']}, state {state_dir})" in second.stderr

    # What ends is started again, at the same address.
    gateway = part(state_dir, "interlace_server")
    assert gateway is not None
    gateway.kill()
    until(lambda: part(state_dir, "interlace_server") not in (None, gateway))
    until(lambda: answers(url))

    done = interlace("down")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Interlace at {url} (process {status['pid']}) stopped in ")
    assert done.stderr.splitlines() == [
        f"stopping Interlace at {url}: open streams and jobs that run may end, 70 s at most",
        "  waiting for gateway, 25 s at most: open streams may end (`gateway.drain_seconds`)",
        "  waiting for workers, 30 s at most: jobs that run may end",
        "  waiting for redis, 10 s at most: it writes what it holds",
    ]
    assert (state_dir / "logs").stat().st_mode & 0o777 == 0o700
    logs = [path.read_text(errors="replace") for path in (state_dir / "logs").iterdir()]
    assert len(logs) >= 4
    assert password not in str([*shown, *logs])
    until(lambda: alive() == [])
    assert interlace("down").stdout == f"Nothing is running (state {state_dir}).\n"
    assert "bye bye" in (state_dir / "logs" / "redis.log").read_text()
    assert "gateway was ended by SIGKILL; starting it again at once" in (state_dir / "logs" / "up.log").read_text()


def test_the_first_models_process_is_started_first_and_taken_over(
    foreground: Foreground, state_dir: Path, until: Until
) -> None:
    """It is a child of `up`, not of workers, and there is no other; it ends with them, also in the midst of a load."""
    process = foreground()
    ready(process)
    zygotes: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "interlace_workers.zygote" in " ".join(one.cmdline()):
                parents[one.pid], zygotes[one.pid] = one.ppid(), one
    [(first, parent)] = [(pid, parent) for pid, parent in parents.items() if parent not in zygotes]
    assert parent == process.pid
    zygotes[first].suspend()  # as little as this one heeds its channel one that loads
    workers = part(state_dir, "interlace_workers")
    assert workers is not None
    workers.kill()
    until(lambda: not any(map(lives, zygotes.values())))


def test_ctrl_c_while_it_starts(
    foreground: Foreground, state_dir: Path, tmp_path: Path, until: Until, alive: Alive
) -> None:
    process = foreground()
    until((state_dir / "logs" / "workers.log").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    assert process.stdout is not None
    assert process.stdout.read() == ""
    until(lambda: alive() == [])


def test_a_second_ctrl_c_ends_all_at_once(
    foreground: Foreground, state_dir: Path, tmp_path: Path, until: Until, alive: Alive
) -> None:
    process = foreground()
    # A part that does not react, so that the first Ctrl-C would take its time. It is looked for once: the command
    # line of a process is empty for a moment while it becomes another program.
    until(lambda: part(state_dir, "interlace_workers")).suspend()
    process.send_signal(signal.SIGINT)
    until(lambda: "stopping" in (tmp_path / "stderr").read_text())
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    assert time.monotonic() - started < 25  # the part would be waited for, for 30
    until(lambda: alive() == [])


def test_nothing_outlives_a_killed_one(
    foreground: Foreground, until: Until, interlace: Interlace, alive: Alive
) -> None:
    process = foreground()
    ready(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: alive() == [])
    assert interlace("status").returncode == 3
    assert "Nothing is running" in interlace("down").stdout


def test_redis_is_started_again_with_all_that_it_held(
    foreground: Foreground, state_dir: Path, tmp_path: Path, interlace: Interlace, until: Until
) -> None:
    process = foreground()
    ready(process)
    key = interlace("keys", "create", "--tenant", "lab").stdout
    redis = next(child for child in psutil.Process(process.pid).children() if "server" in child.name())
    redis.kill()
    until(lambda: "redis was ended by SIGKILL; starting it again at once" in (tmp_path / "stderr").read_text())
    until(lambda: interlace("status").returncode == 0)
    assert "lab" in interlace("keys", "list").stdout, key
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0


async def test_a_shared_redis_one_of_two_models_and_ctrl_c(
    foreground: Foreground, interlace: Interlace, tiny_models: Path, tmp_path: Path, redis_url: str
) -> None:
    """What a former run left there goes: its models, and why one of ours failed the last time."""
    async with open_state(Config(redis=RedisConfig(url=redis_url))) as state:
        for name, failure in (("former/model", None), ("local/nowhere", "old news")):
            key = ModelKey(repo_id=name)
            await state.models.publish(ModelCard(key=key, commit="0" * 40, dtype="float32", config={}, failure=failure))
    process = foreground(redis={"url": redis_url}, models=[{"source": str(tiny_models)}, {"source": "./nowhere"}])
    ready(process)
    told = (tmp_path / "stderr").read_text()
    assert "Not hosted:\n  local/nowhere (text-generation): There is no folder" in told
    assert told.count("There is no folder") == 1
    status = json.loads(interlace("status", "--json").stdout)
    assert [(model["repo_id"], model["state"]) for model in status["models"]] == [
        ("local/nowhere", "failed"),
        ("local/own-model", "ready"),
    ]
    assert "local/nowhere: There is no folder" in interlace("status").stdout
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    said = (tmp_path / "stderr").read_text().splitlines()
    assert "Ctrl-C again ends everything at once" in said
    assert [line.partition(",")[0] for line in said[said.index("stopping") :]] == [
        "stopping",
        "  waiting for gateway",
        "  waiting for workers",
        "stopped",
    ]


def test_twice_with_a_model_that_the_hub_knows_by_another_name(
    interlace: Interlace, tiny_models: Path, tmp_path: Path, redis_url: str
) -> None:
    """The second time finds the first one's card in Redis."""
    with hub_server.running({path.name: path.read_bytes() for path in tiny_models.iterdir()}) as environ:
        for _ in range(2):
            done = interlace(
                *("up", "--model", "lab/tiny", "--runtime", "process", "--detach"),
                **environ,
                HF_HOME=str(tmp_path / "hf"),
                REDIS_URL=redis_url,
            )
            assert (done.returncode, done.stdout[:6]) == (0, "ready "), done.stderr
            [model] = json.loads(interlace("status", "--json").stdout)["models"]
            assert (model["repo_id"], model["state"]) == ("lab/Tiny", "ready")
            assert "placed" not in done.stderr
            assert interlace("down").returncode == 0


async def test_the_next_configuration_ends_what_the_former_one_left(
    foreground: Foreground, interlace: Interlace, state_dir: Path
) -> None:
    """With the embedded Redis, too: a job of a model that is hosted no more does not wait for ever."""
    former = ModelKey(repo_id="former/model")
    job = Job(
        id="0" * 32,
        tenant="local",
        model=former,
        compress=True,
        limits=Limits(),
        payload_bytes=1,
        submitted_at=time.time(),
    )
    process = foreground()
    ready(process)
    async with open_state(load(state_dir / "run" / "config.json", {})) as state:
        await state.models.publish(ModelCard(key=former, commit="0" * 40, dtype="float32", config={}))
        await state.queue.submit(job, waiting_jobs=9, running_jobs=9, kept_jobs=99, model_ready=False)
    waiting = {model["repo_id"]: model["jobs"] for model in json.loads(interlace("status", "--json").stdout)["models"]}
    assert waiting == {"former/model": 1, "local/own-model": 0}
    assert interlace("admin", "pause", "local/own-model").returncode == 0
    assert "ready, paused" in interlace("status").stdout
    assert interlace("admin", "resume", "local/own-model").returncode == 0
    assert "paused" not in interlace("status").stdout
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0
    process = foreground()
    ready(process)
    async with open_state(load(state_dir / "run" / "config.json", {})) as state:
        end = await state.events.last(job.id, job.tenant)
        assert isinstance(end, Ended)
        assert "former/model (text-generation) is no longer hosted on this server." in end.text
        assert [model.card.key.repo_id for model in await state.models.all()] == ["local/own-model"]
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 0


def test_others_are_let_in_with_keys_only(
    interlace: Interlace, tiny_models: Path, tmp_path: Path, state_dir: Path
) -> None:
    """Refused before anything is loaded; the command that is named helps."""
    configuration = {
        "runtime": "process",
        "isolation": "available",
        "models": [{"source": str(tiny_models)}],
        "gateway": {"public_url": "https://interlace.lab.example/"},
    }
    (tmp_path / "my lab.yaml").write_text(json.dumps(configuration))
    up = ("up", "--config", "my lab.yaml")
    for words, where in (((), "https://interlace.lab.example/"), (("--host", "0.0.0.0"), "0.0.0.0")):
        public = {} if not words else {"INTERLACE_GATEWAY__PUBLIC_URL": "http://127.0.0.1:8000"}
        done = interlace(*up, *words, **public)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Others than this machine can reach {where}, and there is no API key yet" in done.stderr
    [command] = re.findall("  (interlace keys create .*)", done.stderr)
    assert command == "interlace keys create --tenant NAME --config 'my lab.yaml'"
    assert {path.name for path in (state_dir / "logs").iterdir()} == {"redis.log", "redis.log.1"}
    assert interlace(*shlex.split(command.replace("NAME", "lab"))[1:]).returncode == 0
    done = interlace(*up, "--detach")
    assert done.returncode == 0, done.stderr
    assert pasted(done.stderr) == ["https://interlace.lab.example https://interlace.lab.example/hf\n"] * 2
    assert "and NDIF_API_KEY, which everybody needs here" in done.stderr
    [key] = json.loads(interlace("keys", "list", "--json", "--config", "my lab.yaml").stdout)
    assert "nobody can enter" in interlace("keys", "revoke", key["id"], "--config", "my lab.yaml").stderr
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{done.stdout.strip().rpartition(':')[2]}/whoami", timeout=60)
    assert interlace("down", "--config", "my lab.yaml").returncode == 0


@pytest.mark.parametrize(
    ("gateway", "url", "base"),
    [
        ({}, "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ({"host": "::1"}, "http://[::1]:8000", "http://[::1]:8000"),
        ({"host": "0.0.0.0"}, "http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ({"host": "::"}, "http://[::]:8000", "http://[::1]:8000"),
        ({"host": "0.0.0.0", "public_url": "https://lab.example/"}, "http://0.0.0.0:8000", "https://lab.example"),
    ],
)
def test_what_clients_are_told(gateway: dict[str, str], url: str, base: str) -> None:
    config = Config.model_validate({"gateway": gateway})
    said = for_clients(config, url, keyed=False)
    assert pasted("\n".join(said)) == [f"{base} {base}/hf\n"] * 2
    anywhere = gateway.get("host") in ("0.0.0.0", "::") and "public_url" not in gateway
    assert ("on other machines" in said[-1]) == anywhere
    assert "NDIF_API_KEY" in for_clients(config, url, keyed=True)[-1]


def test_two_models_of_one_name(interlace: Interlace, tmp_path: Path, state_dir: Path) -> None:
    words = [word for run in "ab" for word in ("--model", str(tmp_path / run / "final"))]
    done = interlace("up", *words, "--runtime", "process")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"`models[0]` ({tmp_path}/a/final) and `models[1]` ({tmp_path}/b/final) are both local/final" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"REDIS_URL": "localhost:6379"}, "`redis.url`: expected a redis://, rediss:// or unix:// URL"),
        ({"INTERLACE_STORE__URL": "s3://bucket/interlace"}, "`store.url` is 's3://bucket/interlace', which cannot"),
        ({"INTERLACE_STORE__URL": "nowhere://x"}, "`store.url` is 'nowhere://x', which cannot be used here: Protocol"),
    ],
)
def test_an_address_that_cannot_be(interlace: Interlace, tmp_path: Path, settings: dict[str, str], said: str) -> None:
    done = interlace("up", "--model", tmp_path, "--runtime", "process", **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_no_model_can_be_loaded(interlace: Interlace, tmp_path: Path, state_dir: Path) -> None:
    done = interlace("up", "--model", tmp_path / "nowhere", "--runtime", "process")
    assert (done.returncode, done.stdout) == (1, "")
    said = f"  local/nowhere (text-generation): There is no folder {tmp_path}/nowhere."
    assert f"interlace: No model could be loaded:\n{said}" in done.stderr
    assert done.stderr.count("There is no folder") == 1
    assert "Traceback" not in done.stderr


def test_a_task_that_the_model_cannot_do(interlace: Interlace, tiny_models: Path, state_dir: Path) -> None:
    done = interlace("up", "--model", tiny_models, "--task", "image-classification", "--runtime", "process")
    assert (done.returncode, done.stdout) == (1, "")
    assert "local/own-model (image-classification): " in done.stderr
    assert "GPT2LMHeadModel cannot be hosted for the task 'image-classification'" in done.stderr
    assert "to what it can do: text-generation, feature-extraction, text-classification" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_of_no_model_is_refused(interlace: Interlace, state_dir: Path) -> None:
    done = interlace("up", "--task", "fill-mask")
    assert (done.returncode, done.stdout) == (2, "")
    assert "`--task` is about `--model`, which is missing" in done.stderr


def test_a_part_that_ends_while_it_starts(
    interlace: Interlace, tmp_path: Path, tiny_models: Path, state_dir: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'interlace_server' in sys.orig_argv: sys.exit('out of luck')\n"
    )
    done = interlace("up", "--model", tiny_models, "--runtime", "process", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    log = state_dir / "logs" / "gateway.log"
    assert f"interlace: gateway ended with exit code 1 while it started. The end of {log}:" in done.stderr
    assert "out of luck" in done.stderr
