"""Promise: what a job says of values that stream is believed only as far as it was checked, and never looked into."""

import re
import secrets
from pathlib import Path
from typing import Any

import hostile
import httpx
import pytest
from hostile import Attack

import interlace
from interlace.protocol.event import Ended
from interlace.protocol.job import JobState

#: Writes frames to the parent by itself, as the child's own code does; its file of values holds what `hold` is given.
FORGE = """
import stat, struct

def descriptors(kind):
    found = []
    for fd in range(3, 64):
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            continue
        if kind(mode):
            found.append(fd)
    return found

pipes = descriptors(stat.S_ISFIFO)
files = descriptors(stat.S_ISREG)

def frame(kind, body):
    return struct.pack("!BI", kind, len(body)) + body

def say(step=-1, offset=0, size=0, name=b"x", kind=4):
    for pipe in pipes:
        os.write(pipe, frame(kind, struct.pack("!iQQ", step, offset, size) + name))

def tell(progress):
    for pipe in pipes:
        os.write(pipe, frame(5, progress))

def hold(data):
    for file in files:
        os.pwrite(file, data, 0)

import time
"""
DEADLINE = 120.0  # seconds
BROKEN = "wrote to the channel that reports its end"


@pytest.mark.parametrize(
    "words",
    [
        "say(offset=1 << 40)",
        "say(size=1)",
        "say(offset=(1 << 64) - 1, size=2)",
        "say(step=-5)",
        "say(name=b'')",
        "say(name=b'n' * 257)",
        "say(name=b'\\xff')",
        "say(kind=9)",
        "tell(b'nonsense')",
        "tell(b'{\"step\": -1}')",
        'tell(b\'{"step": 1, "of": 1e999}\')',
        "tell(b' ' * 4000)",
        "say(name=b'n' * (300 << 10))",
    ],
)
def test_a_forged_frame_ends_its_own_job(siege: Any, words: str) -> None:
    siege.run(Attack("forged", f"{FORGE}{words}\ntime.sleep(60)", fails=BROKEN))


def polled(siege: Any, source: str) -> tuple[str, Ended]:
    """Run hostile code in a job that no stock client waits for, which would load what it is sent: its id, its end."""
    client = siege.client
    with client.trace(hostile.PROMPT, remote=True, blocking=False) as tracer:
        exec(hostile.PRELUDE + source, {"model": client})
    with interlace.connect(siege.target.server.url) as follower:
        return tracer.backend.job_id, follower.follow(tracer.backend.job_id).wait(DEADLINE)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("for _ in range(1000): say()", r"200 values.*limits\.streamed_values"),
        ("hold(b'x' * (5 << 20))\nsay(size=5 << 20)\nsay(size=5 << 20)", r"8,388,608 bytes.*limits\.result_bytes"),
    ],
    ids=["many", "the same bytes over and over"],
)
def test_more_than_the_limits_let_through(siege: Any, words: str, says: str) -> None:
    _, end = polled(siege, f"{FORGE}{words}\ntime.sleep(60)")
    assert end.state is JobState.ERROR
    assert re.search(says, end.text), end.text
    siege.unharmed()


def test_a_flood_of_progress_is_few_events(siege: Any) -> None:
    """What is told is data and is shown as data; the parent lets a few words of it through."""
    source = FORGE + 'for step in range(4000): tell(b\'{"step": %d, "metrics": {"loss": NaN}}\' % step)'
    url = siege.target.server.url
    job, end = polled(siege, source)
    assert end.state is JobState.COMPLETED, end.text
    told = httpx.get(f"{url}/v1/jobs/{job}/events", timeout=DEADLINE).text.count("event: progress")
    assert 1 <= told <= 8 + 2 * 60
    siege.unharmed()


def test_a_file_that_would_fill_the_disk(siege: Any) -> None:
    source = FORGE + "for file in files: attempt(f'write {file}', os.pwrite, file, b'x', 9 << 20)"
    siege.run(Attack("large", source, refusals={"EFBIG", "EBADF"}))


def test_a_gadget_in_a_value_is_for_its_own_client_to_load(siege: Any, home: Path) -> None:
    """Neither parent nor gateway look into it: its bytes are given out as they are, to its tenant."""
    marker = home / f"gadget-{secrets.token_hex(4)}"
    gadget = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    source = f"{FORGE}gadget = {gadget!r}\nhold(gadget)\nsay(size=len(gadget), name=b'gadget')"
    url = siege.target.server.url
    job, end = polled(siege, source)
    assert end.state is JobState.COMPLETED, end.text
    assert httpx.get(f"{url}/v1/jobs/{job}/values/1", timeout=DEADLINE).content == gadget
    assert '"name":"gadget"' in httpx.get(f"{url}/v1/jobs/{job}/events", timeout=DEADLINE).text
    assert not marker.exists()
    siege.unharmed()
