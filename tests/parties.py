"""Payloads as the stock client makes them, and several of them in one party on a real executor."""

import asyncio
import contextlib
import io
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend

from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_workers.executors.base import Apart, Done, Executor, Failed, Happening, Printed, Runner


class Capture(Backend):  # type: ignore[misc]
    """Serializes a trace as the stock client does, and keeps it."""

    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


class Run:
    """What one job did."""

    def __init__(self, happenings: list[Happening], result: bytes) -> None:
        self.happenings = happenings
        self.end = happenings[-1]
        self._result = result

    @property
    def saved(self) -> dict[str, Any]:
        assert isinstance(self.end, Done), self.end
        data = zstandard.ZstdDecompressor().decompress(self._result)
        saved: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=False)
        return saved

    @property
    def error(self) -> str:
        assert isinstance(self.end, Failed), self.end
        return self.end.text

    @property
    def printed(self) -> list[str]:
        return [line for one in self.happenings if isinstance(one, Printed) for line in one.lines]

    @property
    def merged(self) -> int:
        """Jobs in its forward; 0 if it ran alone."""
        assert isinstance(self.end, (Done, Failed))
        return self.end.cost.merged or 0


def job_of(payload: bytes, **limits: Any) -> Job:
    return Job(
        id=secrets.token_hex(16),
        tenant="local",
        model=ModelKey(repo_id="tests/model"),
        compress=True,
        env={"attn_implementation": "sdpa"},
        limits=Limits(**limits),
        payload_bytes=len(payload),
        submitted_at=time.time(),
    )


async def run(runner: Runner, payload: bytes, folder: Path, **limits: Any) -> Run:
    job = job_of(payload, **limits)
    result = folder / job.id
    result.write_bytes(b"")
    async with contextlib.aclosing(runner.run(job, payload, result)) as happenings:
        return Run([happening async for happening in happenings], result.read_bytes())


async def together(executor: Executor, payloads: Sequence[bytes], folder: Path, **limits: Any) -> list[Run]:
    """Run them in one party; those that cannot share run alone afterwards, as their replica has them run."""
    seats = executor.party(len(payloads))
    running = [run(seat, payload, folder, **limits) for seat, payload in zip(seats, payloads, strict=True)]
    found = await asyncio.gather(*running, return_exceptions=True)
    return [
        await settled(executor, one, payload, folder, **limits) for one, payload in zip(found, payloads, strict=True)
    ]


async def settled(executor: Executor, ran: Run | BaseException, payload: bytes, folder: Path, **limits: Any) -> Run:
    """What a job did in a party, or, where that counts for nothing, what it does alone."""
    if isinstance(ran, Apart):
        return await run(executor, payload, folder, **limits)
    if isinstance(ran, BaseException):
        raise ran
    return ran
