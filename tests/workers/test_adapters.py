"""The parent finds an adapter, looks at it, and hands it on as bytes that nobody can change."""

import mmap
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from meeting import make_job
from uploads import ADAPTER, CONFIG, WEIGHTS

from interlace.protocol.errors import AdapterRefused, UnknownArtifact
from interlace.protocol.job import Job
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.models import ModelCard
from interlace_state.settings.adapters import AdaptersConfig
from interlace_state.settings.limits import Admission
from interlace_state.settings.services import RedisConfig, StoreConfig
from interlace_state.store import State, open_state
from interlace_workers.executors.base import Sealed
from interlace_workers.replicas.adapters import Adapters

KEY = ModelKey(repo_id="lab/base")


@pytest.fixture
async def state(redis_url: str, tmp_path: Path) -> AsyncIterator[State]:
    config = Config(
        redis=RedisConfig(url=redis_url, prefix=f"test:{secrets.token_hex(4)}:"),
        store=StoreConfig(url=str(tmp_path / "store")),
        state_dir=tmp_path,
    )
    async with open_state(config) as state:
        await state.models.publish(ModelCard(key=KEY, commit="a" * 40, dtype="float32", config={}))
        yield state


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    for number in range(3):
        folder = tmp_path / "shelf" / str(number)
        folder.mkdir(parents=True)
        for name, data in ADAPTER.items():
            (folder / name).write_bytes(data)
        (folder / "adapter_config.json").write_bytes(CONFIG + b" " * number)
    return tmp_path / "shelf"


def job(ref: str | Path | None, tenant: str = "local") -> Job:
    return make_job(tenant=tenant).model_copy(update={"env": {"peft": None if ref is None else str(ref)}})


def adapters(state: State, shelf: Path, **more: Any) -> Adapters:
    return Adapters(AdaptersConfig(folders=(shelf,), **more), state, KEY)


def contents(sealed: Sealed) -> tuple[bytes, bytes]:
    size = os.fstat(sealed.file.fileno()).st_size
    data = os.pread(sealed.file.fileno(), size, 0)
    return data[: sealed.adapter.config_bytes], data[sealed.adapter.config_bytes :]


async def test_what_is_handed_on_can_be_read_and_not_changed(state: State, shelf: Path) -> None:
    (sealed,) = await adapters(state, shelf).of(job(shelf / "1"))
    assert contents(sealed) == (CONFIG + b" ", WEIGHTS)
    assert (sealed.adapter.kind, sealed.adapter.name) == ("peft", str(shelf / "1"))
    fd = sealed.file.fileno()
    for change in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 1),
        lambda: os.ftruncate(fd, 1 << 20),
        lambda: mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()
    private = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    private[:4] = b"evil"
    assert contents(sealed)[0] == CONFIG + b" "


async def test_a_job_without_one_has_none(state: State, shelf: Path) -> None:
    assert await adapters(state, shelf).of(job(None)) == ()
    assert await adapters(state, shelf).of(make_job()) == ()


async def test_the_next_job_has_it_from_memory_until_others_need_the_room(state: State, shelf: Path) -> None:
    found = adapters(state, shelf, cache_bytes=2 * (len(CONFIG) + len(WEIGHTS)) + 10)

    async def file(number: int) -> Any:
        (sealed,) = await found.of(job(shelf / str(number)))
        assert contents(sealed) == (CONFIG + b" " * number, WEIGHTS)
        return sealed.file

    first, second = await file(0), await file(1)
    assert (await file(0), await file(1), await file(0)) == (first, second, first)
    await file(2)  # and the second, used longest ago, goes
    assert await file(0) is first
    assert await file(1) is not second
    none = adapters(state, shelf, cache_bytes=0)
    (sealed,) = await none.of(job(shelf / "0"))
    assert contents(sealed) == (CONFIG, WEIGHTS)


async def test_a_file_that_has_changed_is_read_again(state: State, shelf: Path) -> None:
    found = adapters(state, shelf)
    await found.of(job(shelf / "0"))
    (shelf / "0" / "adapter_config.json").write_bytes(CONFIG + b"\n\n\n")
    (sealed,) = await found.of(job(shelf / "0"))
    assert contents(sealed)[0] == CONFIG + b"\n\n\n"


async def test_an_artifact_is_its_tenants_even_where_it_is_in_memory(state: State, shelf: Path) -> None:
    found = adapters(state, shelf)
    staged = {name: state.artifacts.stage() for name in ADAPTER}
    for name, path in staged.items():
        path.write_bytes(ADAPTER[name])
    artifact = await state.artifacts.add("lab-a", "peft", staged, Admission())
    (sealed,) = await found.of(job(artifact.ref, "lab-a"))
    (again,) = await found.of(job(f"artifact:{artifact.id}", "lab-a"))
    assert contents(sealed) == (CONFIG, WEIGHTS)
    assert again.file is sealed.file
    assert again.adapter.name == f"artifact:{artifact.id}"  # as the request calls it, which its client will check
    with pytest.raises(UnknownArtifact):
        await found.of(job(artifact.ref, "lab-b"))
    await state.artifacts.delete(artifact)
    with pytest.raises(UnknownArtifact):
        await found.of(job(artifact.ref, "lab-a"))


async def test_a_link_may_lead_to_another_place_that_is_allowed(state: State, shelf: Path, tmp_path: Path) -> None:
    (shelf / "link").symlink_to(shelf / "2")
    (sealed,) = await adapters(state, shelf).of(job(shelf / "link"))
    assert contents(sealed)[0] == CONFIG + b"  "
    (tmp_path / "outside").mkdir()
    for name, data in ADAPTER.items():
        (tmp_path / "outside" / name).write_bytes(data)
    (shelf / "out").symlink_to(tmp_path / "outside")
    (shelf / "circle").symlink_to(shelf / "circle")
    for name, sentence in (("out", "is a link out of"), ("circle", "cannot be read")):
        with pytest.raises(AdapterRefused, match=sentence):
            await adapters(state, shelf).of(job(shelf / name))
