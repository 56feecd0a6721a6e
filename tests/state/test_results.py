"""Results are opaque files; a signed token opens one of them, for a while, and nothing else."""

import asyncio
import secrets
import time
from pathlib import Path

import pytest
from meeting import make_job, submit, submitted

from interlace.protocol.errors import StoreFull, UnknownJob
from interlace.protocol.job import Job
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.store import State, open_state


@pytest.fixture
def job() -> Job:
    return make_job()


async def stored(state: State, job: Job, data: bytes) -> None:
    staged = state.results.stage()
    staged.write_bytes(data)
    ref = await state.results.put(job, staged)
    assert (ref.size, staged.exists()) == (len(data), False)


@pytest.mark.parametrize("data", [b"", b"x", secrets.token_bytes(3 << 20)])
async def test_a_result_comes_back_whole_and_in_pieces(state: State, job: Job, data: bytes) -> None:
    await stored(state, job, data)
    assert await state.results.read(job.id) == data
    size, stream = await state.results.open(job.id)
    assert (size, b"".join([piece async for piece in stream(0, size)])) == (len(data), data)
    assert b"".join([piece async for piece in stream(size // 3, size // 2)]) == data[size // 3 : size // 2]


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


async def test_a_full_store_takes_no_new_jobs_and_the_results_of_those_it_took(config: Config) -> None:
    store = config.store.model_copy(update={"max_bytes": 1000})
    async with open_state(config.model_copy(update={"store": store})) as state:
        job = make_job()
        await state.results.put_payload(job.id, bytes(900))
        with pytest.raises(StoreFull, match=r"900 of 1,000 bytes.*store\.max_bytes"):
            await state.results.put_payload(make_job().id, bytes(200))
        await stored(state, job, bytes(500))
        assert await state.results.read(job.id) == bytes(500)


async def test_of_jobs_that_come_at_once_only_those_are_taken_that_fit(config: Config) -> None:
    store = config.store.model_copy(update={"max_bytes": 1000})
    async with open_state(config.model_copy(update={"store": store})) as state:
        puts = (state.results.put_payload(make_job().id, bytes(100)) for _ in range(30))
        refused = [error for error in await asyncio.gather(*puts, return_exceptions=True) if error is not None]
        assert len(refused) == 20
        assert {type(error) for error in refused} == {StoreFull}


async def test_the_room_of_what_was_deleted_is_counted_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    store = config.store.model_copy(update={"max_bytes": 1000})
    async with open_state(config.model_copy(update={"store": store})) as state:
        job = make_job()
        await state.results.put_payload(job.id, bytes(900))
        await state.results.delete(job.id)
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        await state.results.put_payload(job.id, bytes(900))


async def test_a_disk_that_is_nearly_full_takes_no_new_jobs(config: Config) -> None:
    store = config.store.model_copy(update={"min_free_bytes": 1 << 49})  # half a petabyte
    async with open_state(config.model_copy(update={"store": store})) as state:
        with pytest.raises(StoreFull, match=r"must leave 562,949,953,421,312 \(`store\.min_free_bytes`\)"):
            await state.results.put_payload(make_job().id, b"x")


async def test_a_store_that_cannot_be_written_is_a_refusal(state: State, config: Config) -> None:
    Path(config.store_url).mkdir()
    (Path(config.store_url) / "payloads").write_text("no folder")
    with pytest.raises(StoreFull, match="takes nothing"):
        await state.results.put_payload(make_job().id, b"x")


async def test_a_refused_post_takes_up_no_room(config: Config) -> None:
    store = config.store.model_copy(update={"max_bytes": 1000})
    async with open_state(config.model_copy(update={"store": store})) as state:
        for _ in range(5):
            job = make_job()
            await state.results.put_payload(job.id, bytes(600))
            await state.results.delete_payload(job.id)


async def test_results_go_with_the_record_of_their_job(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that was forgotten as its tenant has others: nobody could delete it, and it took its bytes."""
    jobs = [make_job() for _ in range(2)]
    for job in jobs:
        await submit(state, job)
        await stored(state, job, b"result")
    await state.redis.delete(Keys(config.redis.prefix).job(jobs[0].id))
    assert await state.results.collect() == 0
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    assert await state.results.collect() == 1
    with pytest.raises(UnknownJob):
        await state.results.read(jobs[0].id)
    assert await state.results.read(jobs[1].id) == b"result"


async def test_payloads_of_jobs_that_ended_or_never_were_are_collected(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, cancelled, lost = make_job(), make_job(), make_job()
    for job in (waiting, cancelled, lost):
        await state.results.put_payload(job.id, b"x")
    await submit(state, waiting)
    await submit(state, cancelled)
    await state.queue.cancel(cancelled.id, "enough")
    assert await state.results.collect() == 0  # young ones may be about to be queued
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    assert await state.results.collect() == 2
    assert await state.results.payload(waiting) == b"x"


async def test_the_payload_of_a_job_that_is_known_stays_however_old_it_is(
    state: State, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run again when its worker dies, a lifetime of waiting after it came."""
    job = await submitted(state)
    await state.results.put_payload(job.id, b"x")
    later = time.time() + config.lifetimes.waiting + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert await state.results.collect() == 0
    assert await state.results.payload(job) == b"x"
