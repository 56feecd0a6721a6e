"""Checkpoints: the newest of a job, with the payload that it began with, and gone with its record."""

from interlace_state.store import State


async def put(state: State, job_id: str, data: bytes, payload: bytes) -> None:
    staged = state.checkpoints.stage()
    staged.write_bytes(data)
    await state.checkpoints.put(job_id, staged, payload)


async def test_the_newest_is_kept_and_the_first_payload(state: State) -> None:
    job_id = "a" * 32
    assert await state.checkpoints.read(job_id) is None
    await put(state, job_id, b"step 1", b"asked")
    await put(state, job_id, b"step 2", b"asked otherwise")
    assert await state.checkpoints.read(job_id) == b"step 2"
    assert await state.checkpoints.payload(job_id) == b"asked"
    await state.checkpoints.delete(job_id)
    assert await state.checkpoints.payload(job_id) is None


async def test_those_of_jobs_that_nobody_knows_are_collected(state: State) -> None:
    known, gone = "a" * 32, "b" * 32
    await state.redis.hset(state.queue._keys.job(known), "state", "running")
    for job_id in (known, gone):
        await put(state, job_id, b"step 1", b"asked")
    assert await state.checkpoints.collect() == 1
    assert await state.checkpoints.read(known) == b"step 1"
    assert await state.checkpoints.read(gone) is None
