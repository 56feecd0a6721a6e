"""Payloads in, results out: a job's large bytes, and the signed names by which a result is fetched."""

import asyncio
import base64
import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from interlace.protocol.errors import StoreFull, UnknownJob
from interlace.protocol.job import Job, JobState, ResultRef
from interlace_state import leftovers
from interlace_state.checkpoints import FOLDER as CHECKPOINTS
from interlace_state.files import Files, Piece
from interlace_state.keys import Keys
from interlace_state.settings.services import LifetimeConfig, StoreConfig
from interlace_state.values import FOLDER as VALUES

_COUNT_SECONDS = 5.0
_COUNTED = ("payloads", "results", VALUES, CHECKPOINTS)
_YOUNG_SECONDS = 60.0  # a payload is there before its job
_TOKEN = re.compile(r"([0-9a-f]{32})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


class Results:
    """What goes into a sandbox and what comes out, both opaque."""

    def __init__(self, redis: Redis, keys: Keys, files: Files, store: StoreConfig, lifetimes: LifetimeConfig) -> None:
        self._redis = redis
        self._keys = keys
        self._files = files
        self._store = store
        self._lifetimes = lifetimes
        self._used = 0
        self._counted_at = -math.inf
        self._counting = asyncio.Lock()
        #: Payloads since then, and their bytes.
        self._put: dict[str, int] = {}

    async def put_payload(self, job_id: str, payload: bytes) -> None:
        """Raises StoreFull where the payload would leave too little room for the results of jobs that run."""
        await self._make_sure_of_room(job_id, len(payload))
        try:
            await self._files.put(f"payloads/{job_id}", payload)
        except OSError as error:
            raise StoreFull(f"The server's store takes nothing: {error.strerror}.") from None

    def make_sure_of_disk(self, more: int) -> None:
        """Raises StoreFull where so many bytes more would leave too little free on the disk of the store."""
        free = self._files.free()
        if free is not None and free - more < self._store.min_free_bytes:
            raise StoreFull(
                f"The server's disk has {free:,} bytes left, and new jobs must leave {self._store.min_free_bytes:,} "
                "(`store.min_free_bytes`)."
            )

    async def _make_sure_of_room(self, job_id: str, more: int) -> None:
        self.make_sure_of_disk(more)
        if (most := self._store.max_bytes) is None:
            return
        async with self._counting:  # once for all that come meanwhile: each count would forget what others have added
            if time.monotonic() - self._counted_at > _COUNT_SECONDS:
                self._put.clear()
                self._used, self._counted_at = await self._files.used(*_COUNTED), time.monotonic()
        if self._used + more > most:
            raise StoreFull(f"The server holds {self._used:,} of {most:,} bytes (`store.max_bytes`).")
        self._used += more
        self._put[job_id] = more

    async def payload(self, job: Job) -> bytes:
        """Raises UnknownJob when the payload is gone."""
        try:
            return await self._files.get(f"payloads/{job.id}")
        except FileNotFoundError:
            raise UnknownJob(f"The payload of job {job.id} is gone: its lifetime is over.") from None

    async def delete_payload(self, job_id: str) -> None:
        self._used -= self._put.pop(job_id, 0)
        await self._files.delete(f"payloads/{job_id}")

    async def delete(self, job_id: str) -> None:
        """Remove all bytes of a job."""
        await self.delete_payload(job_id)
        await self._files.delete(f"results/{job_id}")
        await self._files.delete_folder(f"{VALUES}/{job_id}")

    def stage(self) -> Path:
        """An empty private file for a sandbox to write its result into."""
        return self._files.stage()

    async def put(self, job: Job, staged: Path) -> ResultRef:
        """Take a finished result in."""
        size = staged.stat().st_size
        await self._files.adopt(staged, f"results/{job.id}")
        return ResultRef(size=size)

    async def read(self, job_id: str) -> bytes:
        """A whole result. Raises UnknownJob."""
        try:
            return await self._files.get(f"results/{job_id}")
        except FileNotFoundError:
            raise UnknownJob(f"The result of job {job_id} is gone: its lifetime is over.") from None

    async def open(self, job_id: str) -> tuple[int, Callable[[int, int], AsyncIterator[Piece]]]:
        """A result's size in bytes, and what gives its bytes from one position up to another. Raises UnknownJob."""
        name = f"results/{job_id}"
        try:
            return await self._files.size(name), partial(self._files.stream, name)
        except FileNotFoundError:
            raise UnknownJob(f"The result of job {job_id} is gone: its lifetime is over.") from None

    async def sign(self, job_id: str) -> str:
        """A token that fetches this result until `lifetimes.result_url` is over, and nothing else."""
        expires = int(time.time()) + self._lifetimes.result_url
        return f"{job_id}.{expires}.{await self._signature(job_id, expires)}"

    async def verify(self, token: str) -> str:
        """The job id that a token was signed for. Raises UnknownJob if it is forged or over."""
        match = _TOKEN.fullmatch(token)
        if match is not None:
            job_id, expires, signature = match[1], int(match[2]), match[3]
            if hmac.compare_digest(signature, await self._signature(job_id, expires)):
                if expires >= time.time():
                    return job_id
                raise UnknownJob("This result link has expired. Poll the job again for a new one.")
        raise UnknownJob("This is no result link of this server.")

    async def collect(self) -> int:
        """Remove results and payloads that nobody needs any more; returns how many files went."""
        now = time.time()
        return (
            await self._collect_payloads(now - _YOUNG_SECONDS)
            + await self._collect_results(now - _YOUNG_SECONDS)
            + await self._files.expire("results", now - self._lifetimes.result)
            + await self._files.expire("staging", now - self._lifetimes.waiting)
        )

    async def _collect_payloads(self, older_than: float) -> int:
        """Remove payloads of jobs that have ended, or that never were: a gateway may die before it queues one."""
        job_ids = await self._files.older("payloads", older_than)
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(self._keys.job(job_id), "state")
            states = await pipe.execute()
        waits = {state.value.encode() for state in JobState if not state.ended}
        over = [job_id for job_id, state in zip(job_ids, states, strict=True) if state not in waits]
        for job_id in over:
            await self.delete_payload(job_id)
        return len(over)

    async def _collect_results(self, older_than: float) -> int:
        """Remove results of jobs that are known no more: a tenant has only so many (`limits.kept_jobs`)."""
        names = await self._files.older("results", older_than)
        over = await leftovers.unknown(self._redis, self._keys, names)
        for job_id in over:
            await self._files.delete(f"results/{job_id}")
        return len(over)

    async def _signature(self, job_id: str, expires: int) -> str:
        name = self._keys.result_secret
        secret = await self._redis.get(name)
        if secret is None:
            await self._redis.set(name, secrets.token_bytes(32), nx=True)
            secret = await self._redis.get(name)
        digest = hmac.digest(secret, f"{job_id}.{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
