"""Files are whole or not there, are read by nobody else on the machine, and do not pile up."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from interlace_state.files import AtOnce, Files

#: Dies in the midst of a put, before its file has its name.
DIES = """
import os, sys
from interlace_state import files
os.replace = lambda *_: os._exit(9)
files.Files(sys.argv[1])._put_blocking("payloads/job", b"part")
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A store's folder that is not there yet, where new files are for all to read."""
    before = os.umask(0o022)
    yield tmp_path / "state" / "store"
    os.umask(before)


@pytest.fixture
def files(root: Path) -> Files:
    return Files(str(root))


def _modes(root: Path) -> set[str]:
    paths = [root.parent, root, *root.rglob("*")]
    return {f"{'folder' if path.is_dir() else 'file'} {path.stat().st_mode & 0o777:o}" for path in paths}


async def test_nobody_else_can_read_what_is_stored(files: Files, root: Path) -> None:
    await files.put("payloads/job", b"payload")
    await files.put("hub/model/unet/config.json", b"{}")
    staged = files.stage()
    staged.write_bytes(b"result")
    await files.adopt(staged, "results/job")
    files.stage()
    assert _modes(root) == {"folder 700", "file 600"}


async def test_a_put_that_was_killed_leaves_nothing_for_ever(files: Files, root: Path) -> None:
    await files.put("payloads/whole", b"whole")
    killed = subprocess.run([sys.executable, "-c", DIES, str(root)], check=False, timeout=60)
    assert killed.returncode == 9
    assert await files.names("payloads") == ["whole"]
    left = [path for path in root.rglob("*") if path.is_file() and path.name != "whole"]
    assert [path.read_bytes() for path in left] == [b"part"]
    assert await files.expire("staging", time.time() + 60) == 1
    assert not left[0].exists()


async def test_a_put_that_fails_leaves_nothing(files: Files, root: Path) -> None:
    await files.put("payloads/folder/file", b"whole")
    with pytest.raises(IsADirectoryError):
        await files.put("payloads/folder", b"a folder is there")
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["file"]


async def test_a_folder_goes_with_all_in_it(files: Files, root: Path) -> None:
    await files.put("hub/one/unet/config.json", b"{}")
    await files.put("hub/other/config.json", b"{}")
    await files.delete_folder("hub/one")
    await files.delete_folder("hub/one")
    assert await files.names("hub") == ["other/config.json"]
    assert not (root / "hub" / "one").exists()


async def test_a_store_behind_a_url(tmp_path: Path) -> None:
    """fsspec's own memory stands for a bucket: it is no local folder."""
    files = Files(f"memory://{tmp_path.name}")
    await files.put("hub/one/config.json", b"{}")
    staged = files.stage()
    staged.write_bytes(b"result")
    await files.adopt(staged, "results/job")
    assert (await files.get("results/job"), staged.exists()) == (b"result", False)
    await files.delete_folder("hub/one")
    await files.delete_folder("hub/one")
    assert await files.names("hub/one") == []


class Listed(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A folder that is asked once what it has, as s3fs asks a bucket."""

    protocol = "listed"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = self._ls_from_cache(path)
        if found is None:
            self.dircache[path] = found = [
                {
                    "name": str(one),
                    "size": one.stat().st_size,
                    "type": "directory" if one.is_dir() else "file",
                    "LastModified": datetime.fromtimestamp(one.stat().st_mtime, UTC),
                }
                for one in Path(path).iterdir()
            ]
        return found if detail else [one["name"] for one in found]


async def test_what_another_process_has_written_is_there_at_once(root: Path) -> None:
    fsspec.register_implementation("listed", Listed, clobber=True)
    files = Files(f"listed://{root}")
    (root / "results").mkdir(parents=True)
    for name in ("one", "other"):
        (root / "results" / name).write_bytes(b"result")
        assert await files.size(f"results/{name}") == 6
        assert name in await files.names("results")
    # The listing says it of all; `modified` would be a request for each.
    assert await files.older("results", time.time() - 60) == []
    assert await files.older("results", time.time() + 60) == ["one", "other"]


async def test_a_folder_that_was_slow_is_asked_from_threads_for_a_while() -> None:
    now = 0.0

    def ask(seconds: float) -> bool:
        """Whether the call is made here."""
        nonlocal now
        now += seconds
        return threading.current_thread() is threading.main_thread()

    at_once = AtOnce(lambda: now)
    assert [await at_once.call(ask, seconds) for seconds in (0.001, 0.02, 0.001)] == [True, True, False]
    now += 11
    assert await at_once.call(ask, 0.001)


async def test_a_call_that_fails_slowly_counts_as_slow() -> None:
    now = 0.0

    def fail() -> None:
        nonlocal now
        now += 1
        raise FileNotFoundError

    at_once = AtOnce(lambda: now)
    with pytest.raises(FileNotFoundError):
        await at_once.call(fail)
    assert await at_once.call(threading.current_thread) is not threading.main_thread()


async def test_small_and_large_files_come_back_as_they_were(files: Files) -> None:
    for name, data in (("payloads/small", b"s"), ("payloads/large", bytes(range(256)) * 2048)):
        await files.put(name, data)
        assert await files.get(name) == data
    with pytest.raises(FileNotFoundError):
        await files.get("payloads/none")
