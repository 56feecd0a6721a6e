"""Where methods' jobs stood when they said so last: `checkpoints/{job id}/state` and the job's payload beside it.

A checkpoint is a safetensors file: tensors, and as its metadata `step` and `state`, which is JSON.
"""

from pathlib import Path

from redis.asyncio import Redis

from interlace_state import leftovers
from interlace_state.files import Files
from interlace_state.keys import Keys

FOLDER = "checkpoints"


class Checkpoints:
    """The newest checkpoint of each job that has one. They go with the record of their job, or when it is completed."""

    def __init__(self, redis: Redis, keys: Keys, files: Files) -> None:
        self._redis = redis
        self._keys = keys
        self._files = files

    def stage(self) -> Path:
        """An empty private file for a checkpoint, for `put`."""
        return self._files.stage()

    async def put(self, job_id: str, staged: Path, payload: bytes) -> None:
        """Take a checkpoint in; the one before it goes."""
        if await self.payload(job_id) is None:
            await self._files.put(f"{FOLDER}/{job_id}/payload", payload)
        await self._files.adopt(staged, f"{FOLDER}/{job_id}/state")

    async def read(self, job_id: str) -> bytes | None:
        """The newest checkpoint of a job; None without one."""
        return await self._get(f"{FOLDER}/{job_id}/state")

    async def payload(self, job_id: str) -> bytes | None:
        """The payload of a job that has a checkpoint; None without one."""
        return await self._get(f"{FOLDER}/{job_id}/payload")

    async def delete(self, job_id: str) -> None:
        await self._files.delete_folder(f"{FOLDER}/{job_id}")

    async def collect(self) -> int:
        """Remove the checkpoints of jobs that are known no more; returns of how many."""
        return await leftovers.collect(self._redis, self._keys, self._files, FOLDER)

    async def _get(self, name: str) -> bytes | None:
        try:
            return await self._files.get(name)
        except FileNotFoundError:
            return None
