"""A backup holds all of one prefix and of the store, and comes back whole or not at all."""

import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from interlace_state import backup, owner
from interlace_state.backup import BackupError
from interlace_state.config import Config
from interlace_state.config_file import ConfigError
from interlace_state.files import Files
from interlace_state.store import State

HERE, THERE = "backup-test[1]*:", "backup-test-other:"


@pytest.fixture
async def redis(state: State) -> Redis:
    await state.redis.flushdb()
    await state.redis.hset(f"{HERE}job:1", mapping={"record": b"\x00\xff", "state": "queued"})
    await state.redis.set(f"{HERE}wake", "x", px=3_600_000)
    await state.redis.xadd(f"{HERE}queue", {"job": "1"})
    await state.redis.xgroup_create(f"{HERE}queue", "workers", id="0")
    await state.redis.xreadgroup("workers", "me", {f"{HERE}queue": ">"})
    await state.redis.set("backup-test1x:", "of somebody else, whom the pattern would match unescaped")
    return state.redis


@pytest.fixture
async def files(config: Config) -> Files:
    files = Files(config.store_url)
    await owner.claim(files, HERE)
    await files.put("payloads/1", b"a" * 3_000_000)
    await files.put("artifacts/deep/er/model.safetensors", b"b")
    files.stage().write_bytes(b"half of a result")
    return files


async def test_all_comes_back_and_nothing_of_others(redis: Redis, files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "backup"
    manifest = await backup.save(redis, HERE, files, folder)
    assert manifest.keys == 3
    assert manifest.files == {"payloads/1": 3_000_000, "artifacts/deep/er/model.safetensors": 1}
    restored = Files(str(tmp_path / "elsewhere"))
    assert await backup.load(redis, THERE, restored, folder) == manifest
    assert await redis.hgetall(f"{THERE}job:1") == {b"record": b"\x00\xff", b"state": b"queued"}
    assert await redis.pttl(f"{THERE}job:1") == -1
    assert 0 < await redis.pttl(f"{THERE}wake") <= 3_600_000
    assert (await redis.xpending(f"{THERE}queue", "workers"))["pending"] == 1
    assert len(await redis.keys(f"{THERE}*")) == 3
    assert await restored.get("payloads/1") == b"a" * 3_000_000
    assert await restored.everything() == ["artifacts/deep/er/model.safetensors", "payloads/1", owner.NAME]
    await owner.claim(restored, THERE)


async def test_it_does_not_go_into_the_store_of_another_service(redis: Redis, files: Files, tmp_path: Path) -> None:
    await backup.save(redis, HERE, files, tmp_path / "backup")
    with pytest.raises(ConfigError, match="each would remove the other's jobs"):
        await backup.load(redis, THERE, files, tmp_path / "backup")
    assert not await redis.keys(f"{THERE}*")


async def test_only_its_owner_may_read_it(redis: Redis, files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    folder.mkdir(mode=0o755)
    await backup.save(redis, HERE, files, folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


async def test_a_folder_in_use_is_no_place_for_it(redis: Redis, files: Files, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "thesis.tex").touch()
    with pytest.raises(BackupError, match="is not empty"):
        await backup.save(redis, HERE, files, tmp_path / "backup")


async def test_what_is_there_is_never_overwritten(redis: Redis, files: Files, tmp_path: Path) -> None:
    await backup.save(redis, HERE, files, tmp_path / "backup")
    await redis.hset(f"{HERE}job:1", "state", "running")
    with pytest.raises(BackupError, match="stop all gateways and workers"):
        await backup.load(redis, HERE, files, tmp_path / "backup")
    assert await redis.hget(f"{HERE}job:1", "state") == b"running"


@pytest.mark.parametrize("broken", ["no manifest", "a file cut short", "a key less", "a newer format", "a wrong name"])
async def test_what_is_not_whole_is_not_restored(redis: Redis, files: Files, tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "backup"
    await backup.save(redis, HERE, files, folder)
    manifest, keys = folder / "manifest.json", folder / "redis.jsonl"
    told = json.loads(manifest.read_text())
    if broken == "no manifest":
        manifest.unlink()
    elif broken == "a file cut short":
        (folder / "store" / "payloads" / "1").write_bytes(b"a")
    elif broken == "a key less":
        keys.write_text("".join(keys.read_text().splitlines(keepends=True)[1:]))
    elif broken == "a newer format":
        manifest.write_text(json.dumps(told | {"format": 2}))
    else:
        manifest.write_text(json.dumps(told | {"files": {"../../backup/manifest.json": 1}}))
    said = {
        "no manifest": "not finished",
        "a file cut short": "payloads/1 should be there, with 3000000 bytes",
        "a key less": "has 2 keys, of 3",
        "a newer format": "is of format 2",
        "a wrong name": "no file of a store",
    }[broken]
    with pytest.raises(BackupError, match=said):
        await backup.load(redis, THERE, Files(str(tmp_path / "elsewhere")), folder)
    assert not await redis.keys(f"{THERE}*")
    assert not (tmp_path / "elsewhere").exists()
