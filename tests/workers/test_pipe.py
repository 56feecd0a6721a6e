"""A child's pipe, at the parent's end."""

import asyncio
import gc
import os

from interlace_workers.executors.pipe import Pipe


async def _first(pipe: Pipe) -> bytes:
    return await anext(pipe.chunks())


async def test_one_that_is_let_go_while_it_is_read_leaves_its_number_to_the_next() -> None:
    gc.collect()  # what other tests left open closes now and not below
    former = Pipe()
    reading = asyncio.create_task(_first(former))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    numbers = {former._read_end, former.write_end}
    former.close()
    following = Pipe()
    assert {following._read_end, following.write_end} == numbers  # the kernel gives the lowest
    next_read = asyncio.create_task(_first(following))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    os.write(following.write_end, b"heard")
    assert await asyncio.wait_for(next_read, 60) == b"heard"
    following.close()
