"""Values that left before their job's end, and pictures that a method has shown (its jobs stream no values):
`values/{job id}/{number}`, opaque, gone with the job."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from interlace.protocol.errors import UnknownValue
from interlace_state import leftovers
from interlace_state.files import Files, Piece
from interlace_state.keys import Keys

FOLDER = "values"
#: What is so small travels in its event.
INLINE_BYTES = 32 << 10
#: ... as long as those of its job are no more together: events lie in Redis.
INLINE_TOGETHER = 1 << 20


class Values:
    """The streamed values of all jobs."""

    def __init__(self, redis: Redis, keys: Keys, files: Files) -> None:
        self._redis = redis
        self._keys = keys
        self._files = files

    def stage(self) -> Path:
        """An empty private file for a value, for `put`."""
        return self._files.stage()

    async def put(self, job_id: str, number: int, staged: Path) -> None:
        """Take a value in. One of a former run of the job goes: it was the same value."""
        await self._files.adopt(staged, f"{FOLDER}/{job_id}/{number}")

    async def keep(self, job_id: str, number: int, data: bytes) -> None:
        """As `put`, of bytes that are at hand."""
        await self._files.put(f"{FOLDER}/{job_id}/{number}", data)

    async def read(self, job_id: str, number: int) -> bytes:
        """A whole value. Raises UnknownValue."""
        try:
            return await self._files.get(f"{FOLDER}/{job_id}/{number}")
        except FileNotFoundError:
            raise UnknownValue(job_id, number) from None

    async def open(self, job_id: str, number: int) -> tuple[int, Callable[[int, int], AsyncIterator[Piece]]]:
        """A value's size in bytes, and what gives its bytes from one position up to another. Raises UnknownValue."""
        name = f"{FOLDER}/{job_id}/{number}"
        try:
            return await self._files.size(name), partial(self._files.stream, name)
        except FileNotFoundError:
            raise UnknownValue(job_id, number) from None

    async def tag(self, job_id: str, number: int) -> str:
        """Another one where the job has run again and put the value anew. Raises UnknownValue."""
        try:
            return f"{job_id}.{number}.{await self._files.changed(f'{FOLDER}/{job_id}/{number}'):.6f}"
        except FileNotFoundError:
            raise UnknownValue(job_id, number) from None

    async def collect(self) -> int:
        """Remove the values of jobs that are known no more; returns of how many."""
        return await leftovers.collect(self._redis, self._keys, self._files, FOLDER)
