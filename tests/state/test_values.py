"""Streamed values: in the store or in their events, and gone with their job."""

import pytest

from interlace.protocol import event as words
from interlace.protocol.errors import UnknownValue
from interlace.protocol.event import Saved
from interlace_state.store import State


async def put(state: State, job_id: str, number: int, data: bytes) -> None:
    staged = state.values.stage()
    staged.write_bytes(data)
    await state.values.put(job_id, number, staged)


async def test_a_value_is_read_whole_and_in_pieces(state: State) -> None:
    await put(state, "a" * 32, 7, b"former")
    await put(state, "a" * 32, 7, b"something")
    assert await state.values.read("a" * 32, 7) == b"something"
    size, stream = await state.values.open("a" * 32, 7)
    assert size == 9
    assert b"".join([piece async for piece in stream(4, 9)]) == b"thing"


async def test_an_unknown_value(state: State) -> None:
    with pytest.raises(UnknownValue, match="no streamed value 2"):
        await state.values.read("a" * 32, 2)
    with pytest.raises(UnknownValue):
        await state.values.open("a" * 32, 2)


async def test_values_go_with_their_job(state: State) -> None:
    await put(state, "a" * 32, 1, b"x")
    await put(state, "b" * 32, 1, b"y")
    await state.results.delete("a" * 32)
    with pytest.raises(UnknownValue):
        await state.values.read("a" * 32, 1)
    assert await state.values.read("b" * 32, 1) == b"y"


async def test_values_of_jobs_that_nobody_knows_are_collected(state: State) -> None:
    known, gone = "a" * 32, "b" * 32
    await state.redis.hset(state.queue._keys.job(known), "state", "running")
    for number in (1, 2):
        await put(state, known, number, b"x")
        await put(state, gone, number, b"x")
    assert await state.values.collect() == 1
    assert await state.values.read(known, 2) == b"x"
    with pytest.raises(UnknownValue):
        await state.values.read(gone, 1)
    assert await state.values.collect() == 0


async def test_the_last_event_of_a_number_counts(state: State) -> None:
    """A job that ran again streamed it again."""

    name = state.events._keys.events("c" * 32)
    for event in (
        Saved(number=1, name="x", size=1, data=b"a"),
        Saved(number=11, name="x", size=1, data=b"b"),
        Saved(number=1, name="x", size=1, data=b"c"),
        Saved(number=2, name="x", size=1 << 20),
    ):
        await state.redis.xadd(name, {"e": words.encode(event)})
    assert await state.events.value("c" * 32, 1) == b"c"
    assert await state.events.value("c" * 32, 11) == b"b"
    assert await state.events.value("c" * 32, 2) is None
    assert await state.events.value("c" * 32, 3) is None
