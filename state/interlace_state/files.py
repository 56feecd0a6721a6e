"""The file store: payloads, results and the catalogue's small files, in a folder or behind any fsspec URL."""

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.dircache import DirCache
from fsspec.implementations.local import LocalFileSystem

from interlace_state.config_file import ConfigError

#: Some of a file's bytes.
Piece = bytes | memoryview

_CHUNK = 1 << 20  # bytes that are read of a store elsewhere at a time
#: Of a folder's. So many stay in the processor's cache on their way to a connection.
_PIECE = 256 << 10
#: Bytes up to which a folder's file is read and written without a thread, which takes longer than the file.
_SMALL = 256 << 10
_SLOW = 0.005  # seconds that such a call may take
_WARY = 10.0  # seconds for which, after a slower one, all are made in threads
#: What listings call the moment when a file was written: a folder's and Google's, S3's, Azure's.
_WRITTEN = ("mtime", "LastModified", "last_modified")

T = TypeVar("T")


class AtOnce:
    """Makes calls that a folder answers out of the kernel's memory where they are wanted, without a thread.

    A folder may be a network's, or its disk busy: after a call that took long, the next go to threads for a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wary_until = clock()

    async def call(self, act: Callable[..., T], *arguments: object) -> T:
        """What the call returns, or raises."""
        began = self._clock()
        if began < self._wary_until:
            return await asyncio.to_thread(act, *arguments)
        try:
            return act(*arguments)
        finally:
            ended = self._clock()
            if ended - began > _SLOW:
                self._wary_until = ended + _WARY


class Files:
    """Named bytes. Names are ours, such as ``results/{job id}``; no client chooses one.

    In a folder, what is stored is for the user alone that the server runs as.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL that no installed package can open."""
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"`store.url` is {url!r}, which cannot be used here: {error}.") from None
        # What another process has written since is in no listing of before: s3fs would say that it is not there.
        if isinstance(self._fs.dircache, DirCache):
            self._fs.dircache.use_listings_cache = False
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self._at_once = AtOnce()

    async def put(self, name: str, data: bytes) -> None:
        """Write a file whole: a reader sees all of it or nothing."""
        if self._local and len(data) <= _SMALL:
            await self._at_once.call(self._put_blocking, name, data)
        else:
            await asyncio.to_thread(self._put_blocking, name, data)

    async def get(self, name: str) -> bytes:
        """Read a file whole. Raises FileNotFoundError."""
        if self._local and (data := await self._at_once.call(self._get_small, name)) is not None:
            return data
        return await asyncio.to_thread(self._get_blocking, name)

    async def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return int(await asyncio.to_thread(self._fs.size, self._path(name)))

    async def changed(self, name: str) -> float:
        """When a file was written, in Unix seconds. Raises FileNotFoundError."""
        return float((await asyncio.to_thread(self._fs.modified, self._path(name))).timestamp())

    async def stream(self, name: str, first: int, behind: int) -> AsyncIterator[Piece]:
        """Read a file's bytes from ``first`` up to ``behind`` in pieces of at most 1 MiB. Raises FileNotFoundError.

        A folder's file may be removed meanwhile: it is read to its end.
        """
        if self._local:
            async for piece in self._stream_local(name, first, behind):
                yield piece
            return
        file = await asyncio.to_thread(self._fs.open, self._path(name), "rb")
        try:
            await asyncio.to_thread(file.seek, first)
            while first < behind and (chunk := await asyncio.to_thread(file.read, min(_CHUNK, behind - first))):
                first += len(chunk)
                yield chunk
        finally:
            await asyncio.to_thread(file.close)

    async def _stream_local(self, name: str, first: int, behind: int) -> AsyncIterator[memoryview]:
        fd = await asyncio.to_thread(os.open, self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            while first < behind:
                piece = memoryview(bytearray(min(_PIECE, behind - first)))
                size = _read_from_memory(fd, piece, first)
                if size is None:
                    size = await asyncio.to_thread(os.preadv, fd, [piece], first)
                else:
                    await asyncio.sleep(0)  # a fast reader is not the only one
                if not size:
                    return
                first += size
                yield piece[:size]
        finally:
            os.close(fd)

    async def delete(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        await asyncio.to_thread(self._delete_blocking, name)

    async def delete_folder(self, name: str) -> None:
        """Remove a folder and all in it; one that is not there is fine."""
        await asyncio.to_thread(self._delete_folder_blocking, name)

    async def names(self, folder: str) -> list[str]:
        """The names of a folder's files, without the folder."""
        return await asyncio.to_thread(self._list_blocking, folder)

    async def everything(self) -> list[str]:
        """The names of all files, but of those that are not whole yet."""
        return await asyncio.to_thread(self._everything_blocking)

    def stage(self) -> Path:
        """A new empty private file to write into, for `adopt`; on the store's own disk where it has one."""
        handle, path = self._stage()
        os.close(handle)
        return Path(path)

    def staging(self) -> str:
        """The folder that `stage` makes files in, made where there is none. Raises OSError."""
        folder = self._staging()
        _make_private_folder(folder)
        return folder

    def _staging(self) -> str:
        return self._path("staging") if self._local else tempfile.gettempdir()

    def _stage(self) -> tuple[int, str]:
        path = f"{self._staging()}/{secrets.token_hex(16)}"
        return _in_folder(path, lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)), path

    async def adopt(self, staged: Path, name: str) -> None:
        """Move a staged file into the store."""
        if self._local:
            await self._at_once.call(self._adopt_blocking, staged, name)
        else:
            await asyncio.to_thread(self._adopt_blocking, staged, name)

    async def expire(self, folder: str, older_than: float) -> int:
        """Remove a folder's files that were written before a Unix time; returns how many."""
        return await asyncio.to_thread(self._expire_blocking, folder, older_than)

    async def older(self, folder: str, than: float) -> list[str]:
        """The names of a folder's files that were written before a Unix time."""
        return await asyncio.to_thread(self._older_blocking, folder, than)

    async def used(self, *folders: str) -> int:
        """Bytes of all files in some folders."""
        return await asyncio.to_thread(lambda: sum(map(self._used_blocking, folders)))

    def free(self) -> int | None:
        """Bytes that are free on the disk of a folder; None where the store is elsewhere."""
        if not self._local:
            return None
        disk = _in_folder(f"{self._root}/", lambda: os.statvfs(self._root))
        return disk.f_bavail * disk.f_frsize

    def _found(self, folder: str) -> dict[str, dict[str, Any]]:
        """Path -> what the file system says, of all files in a folder. Blocks."""
        try:
            found: dict[str, dict[str, Any]] = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        return found

    def _used_blocking(self, folder: str) -> int:
        return sum(int(file["size"]) for file in self._found(self._path(folder)).values())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _get_blocking(self, name: str) -> bytes:
        path = self._path(name)
        return Path(path).read_bytes() if self._local else bytes(self._fs.cat_file(path))

    def _get_small(self, name: str) -> bytes | None:
        """A folder's file whole; None for one that is not small."""
        with open(self._path(name), "rb", buffering=0) as file:
            return file.read() if os.fstat(file.fileno()).st_size <= _SMALL else None

    def _put_blocking(self, name: str, data: bytes) -> None:
        if not self._local:
            self._fs.pipe_file(self._path(name), data)
            return
        handle, staged = self._stage()
        try:
            with open(handle, "wb") as file:
                file.write(data)
            self._adopt_blocking(staged, name)
        except BaseException:
            os.unlink(staged)
            raise

    def _adopt_blocking(self, staged: Path | str, name: str) -> None:
        path = self._path(name)
        if self._local:
            _in_folder(path, lambda: os.replace(staged, path))
        else:
            self._fs.put_file(str(staged), path)
            os.unlink(staged)

    def _delete_blocking(self, name: str) -> None:
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _delete_folder_blocking(self, name: str) -> None:
        try:
            self._fs.rm(self._path(name), recursive=True)
        except FileNotFoundError:
            return

    def _list_blocking(self, folder: str) -> list[str]:
        root = self._path(folder)
        return sorted(path.split(f"{root}/", 1)[1] for path in self._found(root))

    def _everything_blocking(self) -> list[str]:
        names = (path.removeprefix(f"{self._root}/") for path in self._found(self._root))
        return sorted(name for name in names if not name.startswith("staging/"))

    def _older_blocking(self, folder: str, than: float) -> list[str]:
        root, names = self._path(folder), []
        for path, said in self._found(root).items():
            with suppress(FileNotFoundError):
                if self._written(path, said) < than:
                    names.append(path.split(f"{root}/", 1)[1])
        return sorted(names)

    def _written(self, path: str, said: dict[str, Any]) -> float:
        """Unix time; asked of each file, which takes a bucket long, only where a listing does not say it."""
        moment = next((said[name] for name in _WRITTEN if name in said), None) or self._fs.modified(path)
        return float(moment.timestamp() if isinstance(moment, datetime) else moment)

    def _expire_blocking(self, folder: str, older_than: float) -> int:
        names = self._older_blocking(folder, older_than)
        for name in names:
            self._delete_blocking(f"{folder}/{name}")
        return len(names)


def _read_from_memory(fd: int, buffer: memoryview, position: int) -> int | None:
    """Fill ``buffer`` with what the kernel has of a file at hand; returns how many bytes, None where it has to wait."""
    try:
        return os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
    except OSError:  # not at hand, or a file system without the question
        return None


def _in_folder(path: str, act: Callable[[], T]) -> T:
    """Do what needs the folder of ``path``; that is made where there is none, which is once."""
    try:
        return act()
    except FileNotFoundError:
        _make_private_folder(os.path.dirname(path))
        return act()


def _make_private_folder(path: str) -> None:
    """Make a folder and its parents; those that were there keep their mode. `os.makedirs` narrows the last one only."""
    if not os.path.isdir(path):
        _make_private_folder(os.path.dirname(path))
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
