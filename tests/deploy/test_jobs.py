"""`interlace jobs, logs, cancel, admin` as they are typed, against a real gateway."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import gateway_process
import pytest
from gateway_process import DEADLINE, HEADERS, KEY, Gateway, Worker, mint, saved

from interlace_state.store import open_state

COMMAND = (sys.executable, "-m", "interlace_deploy")


@pytest.fixture
def gateway(tmp_path: Path, redis_url: str) -> Iterator[Gateway]:
    with gateway_process.running(tmp_path, redis_url, gateway={"drain_seconds": 0}) as gateway:
        yield gateway


@pytest.fixture
async def worker(gateway: Gateway) -> AsyncIterator[Worker]:
    async with open_state(gateway.config) as state:
        await gateway_process.publish(state, gateway.config)
        yield Worker(state)


class Typed:
    """Runs the command as somebody with a key, in an empty folder."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.gateway = gateway
        self.folder = folder
        self.environ = {**os.environ, "NDIF_HOST": gateway.url, "INTERLACE_STATE_DIR": str(folder)}

    def start(self, *words: str, key: str = "") -> "subprocess.Popen[str]":
        environ = self.environ | ({"NDIF_API_KEY": key} if key else {})
        return subprocess.Popen(
            [*COMMAND, *words],
            env=environ,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def run(self, *words: str, key: str = "") -> tuple[int, str, str]:
        process = self.start(*words, key=key)
        out, err = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        return process.returncode, out, err


@pytest.fixture
def typed(gateway: Gateway, home: Path, tmp_path: Path) -> Typed:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return Typed(gateway, folder)


async def post(gateway: Gateway, key: str = "") -> str:
    headers = {**HEADERS, "ndif-api-key": key} if key else HEADERS
    return str((await asyncio.to_thread(gateway.post, headers=headers)).json()["id"])


async def test_a_reader_that_has_seen_enough(gateway: Gateway, worker: Worker, typed: Typed) -> None:
    await post(gateway)
    process = typed.start("jobs")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # long before anything is said
    assert await asyncio.to_thread(process.stderr.read) == ""
    assert await asyncio.to_thread(process.wait, DEADLINE) == 141


async def test_jobs_are_listed(gateway: Gateway, worker: Worker, typed: Typed) -> None:
    done = await post(gateway)
    await asyncio.sleep(0.002)  # the index counts milliseconds
    waits = await post(gateway)
    await worker.end(await worker.start(), "Traceback\n  line\nValueError: \x1b[31mboom")
    typed.environ["TZ"] = "ELSEWHERE-9"
    code, out, err = await typed.run("jobs")
    assert (code, err) == (0, "")
    head, first, second = out.splitlines()
    assert head.split()[:6] == ["id", "tenant", "model", "state", "submitted,", "UTC"]
    assert first.split()[:4] == [waits, "local", KEY.repo_id, "queued"]
    assert "0 ahead" in first
    assert second.split()[:4] == [done, "local", KEY.repo_id, "error"]
    assert second.endswith(r"ValueError: \x1b[31mboom")
    code, out, _ = await typed.run("jobs", "--json", "--state", "error", "--model", KEY.slug)
    assert [(job["id"], job["state"]) for job in json.loads(out)] == [(done, "error")]
    code, out, _ = await typed.run("jobs", "--json", "--limit", "1")
    (job,) = json.loads(out)
    assert job["id"] == waits
    assert f"{datetime.fromtimestamp(job['submitted'], UTC):%Y-%m-%d %H:%M:%S}" in first
    await typed.run("admin", "pause", KEY.repo_id)
    assert "0 ahead; the model is paused by its operator" in (await typed.run("jobs"))[1]


async def test_all_is_for_admins(gateway: Gateway, worker: Worker, typed: Typed, redis_url: str) -> None:
    prefix = gateway.config.redis.prefix
    lab, admin = mint(redis_url, prefix, "lab-a"), mint(redis_url, prefix, "ops", role="admin")
    job_id = await post(gateway, lab)
    file = typed.folder / "key"
    file.write_text(f"{admin}\n")
    assert job_id in (await typed.run("jobs", key=lab))[1]
    assert job_id not in (await typed.run("jobs", "--key-file", str(file)))[1]
    assert job_id in (await typed.run("jobs", "--all", "--key-file", str(file)))[1]
    code, out, err = await typed.run("jobs")
    assert (code, out) == (1, "")
    assert "--key-file" in err
    code, _, err = await typed.run("admin", "pause", KEY.repo_id, key=lab)
    assert code == 1
    assert "--role admin" in err
    code, _, err = await typed.run("cancel", job_id, "0" * 32, key=lab)
    assert code == 1
    assert f"There is no job {'0' * 32}" in err
    code, out, _ = await typed.run("cancel", job_id, key=lab)
    assert (code, out) == (0, f"{job_id} had ended: cancelled\n")


async def test_a_key_comes_by_standard_input(gateway: Gateway, typed: Typed, redis_url: str) -> None:
    """As into a container, whose account cannot read the files of whoever types."""
    key = mint(redis_url, gateway.config.redis.prefix, "lab-a")
    words = [*COMMAND, "jobs", "--json", "--key-file", "-"]
    for said, code in ((f"{key}\n", 0), ("il-not-a-key\n", 1)):
        done = await asyncio.to_thread(
            subprocess.run, words, input=said, env=typed.environ, cwd=typed.folder, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (code, "" if code else "[]\n"), done.stderr


async def test_the_status_of_a_server_elsewhere(gateway: Gateway, worker: Worker, typed: Typed) -> None:
    """It is asked for as jobs are: NDIF_HOST, or `--url`; of a folder here nothing is said."""
    other = {**typed.environ, "NDIF_HOST": "http://127.0.0.1:9"}
    for words, environ in (((), typed.environ), (("--url", gateway.url), other)):
        done = await asyncio.to_thread(
            subprocess.run,
            [*COMMAND, "status", "--json", *words],
            env=environ,
            cwd=typed.folder,
            capture_output=True,
            text=True,
        )
        report = json.loads(done.stdout)
        assert (report["url"], report["pid"]) == (gateway.url, None)
        assert [model["repo_id"] for model in report["models"]] == [KEY.repo_id]


async def test_logs_are_followed_to_the_end(gateway: Gateway, worker: Worker, typed: Typed) -> None:
    job_id = await post(gateway)
    held = await worker.start()
    await worker.log(held, "one")
    assert await typed.run("logs", job_id) == (0, "one\n", "")
    following = typed.start("logs", "-f", job_id)
    assert following.stdout is not None
    assert await asyncio.to_thread(following.stdout.readline) == "one\n"
    await worker.log(held, "two")
    assert await asyncio.to_thread(following.stdout.readline) == "two\n"
    await worker.complete(held, saved(x=1))
    assert await asyncio.to_thread(following.wait, DEADLINE) == 0
    following.communicate()
    other = await post(gateway)
    await worker.end(await worker.start(), "boom")
    code, out, err = await typed.run("logs", "-f", other)
    assert (code, out, err) == (1, "", "error: boom\n")


async def test_a_job_is_cancelled(gateway: Gateway, worker: Worker, typed: Typed) -> None:
    waits = await post(gateway)
    assert await typed.run("cancel", waits) == (0, f"{waits} cancelled\n", "")
    assert await worker.state.queue.length(KEY) == 0


async def test_an_operators_switches(gateway: Gateway, worker: Worker, typed: Typed) -> None:
    control = worker.state.control
    assert (await typed.run("admin", "pause", KEY.slug))[1] == f"{KEY.repo_id} is paused: its jobs wait.\n"
    assert (await worker.state.models.look(KEY)).paused
    assert (await typed.run("admin", "resume", KEY.repo_id))[0] == 0
    assert not (await worker.state.models.look(KEY)).paused
    assert (await typed.run("admin", "drain", "r1"))[0] == 0
    assert await control.drained() == {"r1"}
    assert (await typed.run("admin", "undrain", "r1"))[0] == 0
    assert await control.drained() == frozenset()
    assert (await typed.run("admin", "weight", "lab-a"))[1] == "lab-a: weight 1\n"
    assert (await typed.run("admin", "weight", "lab-a", "2.5"))[1] == "lab-a: weight 2.5\n"
    assert (await control.terms("lab-a")).weight == 2.5
    assert (await typed.run("admin", "limits", "lab-a"))[1] == "lab-a: as configured\n"
    words = ("running_jobs=4", "wall_seconds=2.5")
    assert (await typed.run("admin", "limits", "lab-a", *words))[1].split() == ["lab-a:", *sorted(words, reverse=True)]
    assert (await typed.run("admin", "limits", "lab-a", "wall_seconds="))[1] == "lab-a: running_jobs=4\n"
    assert (await control.terms("lab-a")).limits.running_jobs == 4
    large = "memory_bytes=8589934592"
    assert (await typed.run("admin", "limits", "lab-a", large, "running_jobs=4"))[1].split()[1] == large
    code, _, err = await typed.run("admin", "limits", "lab-a", "running_job=4")
    assert code == 1
    assert "`limits.running_job`" in err
    assert "`limits` takes wall_seconds, " in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("jobs", "--url", "localhost:1"), 2, "expected http://"),
        (("jobs", "--url", "http://127.0.0.1:1"), 3, "127.0.0.1:1 does not answer"),
        (("jobs", "--url", "http://127.0.0.1:1"), 3, "Start one with `interlace up`"),
        (("jobs", "--limit", "-3"), 2, "'-3': expected a number from 1"),
        (("lake", "search", "--limit", "0"), 2, "'0': expected a number from 1"),
        (("lake", "lineage", "ab", "--depth", "x"), 2, "'x': expected a number from 1"),
        (("logs", "abc"), 1, "`job_id` is 'abc', expected 32 hex digits, as `interlace jobs` shows them"),
        (("cancel", "abc"), 1, "`job_id` is 'abc', expected 32"),
        (("artifacts", "delete", "abc"), 1, "`artifact_id` is 'abc', expected 16 hex digits"),
        (("admin", "weight", "lab", "0"), 1, "`weight` is 0, expected at least 0.001."),
        (("admin", "weight", "lab", "1001"), 1, "`weight` is 1001, expected at most 1000."),
        (("admin", "weight", "lab", "nan"), 2, "'nan': expected a number"),
        (("jobs", "--key-file", "nothing"), 2, "nothing: No such file"),
        (("admin", "limits", "lab", "running_jobs=many"), 2, "NAME=NUMBER"),
        (("admin", "pause", "lab/nothing"), 1, "does not host lab/nothing"),
    ],
)
async def test_what_goes_wrong_is_said(typed: Typed, words: tuple[str, ...], code: int, said: str) -> None:
    got, out, err = await typed.run(*words)
    assert (got, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


async def test_the_server_that_runs_here_is_found(gateway: Gateway, typed: Typed) -> None:
    del typed.environ["NDIF_HOST"]
    code, _, _ = await typed.run("jobs", "--config", str(config := typed.folder / "here.yaml"))
    assert code == 2
    port = int(gateway.url.rpartition(":")[2])
    config.write_text(json.dumps({"gateway": {"port": port}, "state_dir": str(typed.folder / "state")}))
    for environ in ({}, {"NDIF_HOST": "http://127.0.0.1:1"}):  # what is typed goes first
        typed.environ |= environ
        assert (await typed.run("jobs", "--config", str(config), "--json"))[:2] == (0, "[]\n")
