"""Results are opaque files; a signed token opens one of them, for a while, and nothing else."""

import secrets
import time
from pathlib import Path

import pytest

from interlace.protocol.errors import UnknownJob
from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.store import State, open_state


@pytest.fixture
def job() -> Job:
    return Job(
        id=secrets.token_hex(16),
        tenant="local",
        model=ModelKey(repo_id="tests/model"),
        compress=False,
        limits=Limits(),
        payload_bytes=0,
        submitted_at=time.time(),
    )


async def stored(state: State, job: Job, data: bytes) -> None:
    staged = state.results.stage()
    staged.write_bytes(data)
    ref = await state.results.put(job, staged)
    assert (ref.size, staged.exists()) == (len(data), False)


@pytest.mark.parametrize("data", [b"", b"x", secrets.token_bytes(3 << 20)])
async def test_a_result_comes_back_whole_and_in_pieces(state: State, job: Job, data: bytes) -> None:
    await stored(state, job, data)
    assert await state.results.read(job.id) == data
    size, pieces = await state.results.open(job.id)
    assert (size, b"".join([piece async for piece in pieces])) == (len(data), data)


async def test_a_payload_lives_until_it_is_deleted(state: State, job: Job) -> None:
    await state.results.put_payload(job.id, b"payload")
    assert await state.results.payload(job) == b"payload"
    await state.results.delete_payload(job.id)
    await state.results.delete_payload(job.id)
    with pytest.raises(UnknownJob, match="gone"):
        await state.results.payload(job)


async def test_a_token_opens_its_result_in_every_gateway(state: State, job: Job, config: Config) -> None:
    token = await state.results.sign(job.id)
    async with open_state(config) as other:
        assert await other.results.verify(token) == job.id


async def test_a_token_that_was_touched_opens_nothing(state: State, job: Job) -> None:
    job_id, expires, signature = (await state.results.sign(job.id)).split(".")
    other = secrets.token_hex(16)
    flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
    for forged in (
        f"{other}.{expires}.{signature}",
        f"{job_id}.{int(expires) + 1}.{signature}",
        f"{job_id}.{expires}.{flipped}",
        f"{job_id}.{expires}.",
        f"../{job_id}.{expires}.{signature}",
        "",
        "\x00",
    ):
        with pytest.raises(UnknownJob, match="no result link"):
            await state.results.verify(forged)


async def test_a_token_expires(state: State, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await state.results.sign(job.id)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(UnknownJob, match="expired"):
        await state.results.verify(token)


async def test_results_are_collected_when_their_lifetime_is_over(
    state: State, job: Job, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stored(state, job, b"old")
    assert await state.results.collect() == 0
    later = time.time() + config.lifetimes.result + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert await state.results.collect() == 1
    with pytest.raises(UnknownJob, match="lifetime is over"):
        await state.results.read(job.id)


async def test_a_stranger_on_the_machine_cannot_read_what_is_staged(state: State) -> None:
    staged: Path = state.results.stage()
    assert staged.stat().st_mode & 0o077 == 0
