"""Promise: nothing that a stranger sends breaks what parses it: it is understood, or refused by name."""

import asyncio
import contextlib
import io
import json
import os
import socket
import string
from collections.abc import Iterator

import pytest
import redis_server
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from interlace.protocol.errors import InvalidPayload, InvalidRequest, LimitExceeded, UnknownJob
from interlace.protocol.frames import HEADER, LONGEST_BODY, BrokenFrame, Frame, FrameKind, FrameReader, encode
from interlace.protocol.model import ModelKey
from interlace_server.doors.admission import check_payload
from interlace_server.nnsight_wire import Envelope
from interlace_state.config import Config
from interlace_state.settings.limits import Admission
from interlace_state.settings.services import RedisConfig
from interlace_state.store import State, open_state
from interlace_workers import channel
from interlace_workers.child.trace import _decompressed

settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
STEADY = settings(settings.get_profile("steady"), max_examples=200)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["model_key", "session_id", "compress", "env", "tenant", "id", ""])
KEY = (
    "nnsight.modeling.transformers.TransformersModel:"
    '{"repo_id": "lab/tiny", "revision": null, "task": "text-generation"}'
)


@STEADY
@given(st.text() | st.dictionaries(FIELDS, JSON, max_size=6).map(json.dumps) | JSON.map(json.dumps))
@example("[" * 100_000)
@example('{"model_key": "' + "a" * 100_000 + '"}')
def test_an_envelope_is_parsed_or_refused(text: str) -> None:
    try:
        envelope = Envelope.parse(text)
        assert isinstance(envelope.model, ModelKey)
    except InvalidRequest:
        return


@STEADY
@given(st.text() | JSON.map(lambda value: f"{KEY.split(':')[0]}:{json.dumps(value)}") | JSON.map(lambda v: f"os:{v!r}"))
@example("os.system:{}")
@example("a:" + "[" * 100_000)
def test_a_model_key_is_data(text: str) -> None:
    try:
        key = ModelKey.parse(text)
    except InvalidRequest:
        return
    assert ModelKey.parse(key.canonical) == key
    assert set(key.slug) <= set(string.ascii_letters + string.digits + "._-")


@STEADY
@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=40))
@example(b"\x01\xff\xff\xff\xff", [1, 1, 1])
@example(encode(FrameKind.DONE) * 3, [7])
def test_frames_do_not_depend_on_how_they_arrive(data: bytes, cuts: list[int]) -> None:
    whole, pieces = read([data]), []
    rest = data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    assert read([*pieces, rest]) == whole


def read(pieces: list[bytes]) -> tuple[list[Frame], bool]:
    reader, found = FrameReader(), []
    try:
        for piece in pieces:
            found += list(reader.feed(piece))
            assert len(reader._buffer) <= LONGEST_BODY + HEADER.size
    except BrokenFrame:
        return whole_frames(pieces), True
    return found, False


def whole_frames(pieces: list[bytes]) -> list[Frame]:
    """The frames before the broken one, byte by byte."""
    reader, found = FrameReader(), []
    for number in b"".join(pieces):
        try:
            found += list(reader.feed(bytes([number])))
        except BrokenFrame:
            break
    return found


class Links:
    """Result links of a real meeting place, for tests that are not asynchronous."""

    def __init__(self, runner: "asyncio.Runner", state: State) -> None:
        self._runner = runner
        self._results = state.results

    def sign(self, job_id: str) -> str:
        return self._runner.run(self._results.sign(job_id))

    def verify(self, token: str) -> str:
        return self._runner.run(self._results.verify(token))


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Links]:
    folder = tmp_path_factory.mktemp("fuzz")
    with redis_server.running(folder) as url, asyncio.Runner() as runner:
        opened = open_state(Config(redis=RedisConfig(url=url), state_dir=folder))
        yield Links(runner, runner.run(opened.__aenter__()))
        runner.run(opened.__aexit__(None, None, None))


TOKENS = st.tuples(st.text("0123456789abcdef", min_size=32, max_size=32), st.integers(0), st.text())


@STEADY
@given(st.text() | TOKENS.map(lambda parts: ".".join(map(str, parts))))
def test_no_forged_link_opens(links: Links, token: str) -> None:
    with pytest.raises(UnknownJob):
        links.verify(token)


def test_no_altered_link_opens(links: Links) -> None:
    token = links.sign("a" * 32)
    assert links.verify(token) == "a" * 32
    for place, was in enumerate(token[:-1]):  # the last character holds two bits that say nothing
        for other in "0aA-.":
            if was != other:
                with pytest.raises(UnknownJob):
                    links.verify(token[:place] + other + token[place + 1 :])


@STEADY
@given(st.binary(max_size=64).map(lambda rest: b"\x28\xb5\x2f\xfd" + rest) | st.binary(max_size=64), st.booleans())
def test_a_payloads_first_bytes(payload: bytes, compress: bool) -> None:
    with contextlib.suppress(InvalidPayload, LimitExceeded):
        check_payload(payload, compress=compress, limits=Admission())


@STEADY
@given(st.binary(max_size=2000), st.integers(1, 19), st.integers(1, 3000))
def test_unpacking_never_passes_the_limit(data: bytes, level: int, limit: int) -> None:
    packed = io.BytesIO(zstandard.compress(data, level))
    if len(data) <= limit:
        assert _decompressed(packed, limit) == data
    else:
        with pytest.raises(LimitExceeded):
            _decompressed(packed, limit)


@STEADY
@given(st.binary(min_size=1, max_size=300), st.integers(0, 8))
def test_a_channel_hands_on_an_object_or_ends(data: bytes, count: int) -> None:
    ours, theirs = channel.pair()
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        socket.send_fds(theirs, [data], [0] * count)
        try:
            message, fds = channel.receive(ours)
        except EOFError:
            fds = []
        else:
            assert isinstance(message, dict)
            for fd in fds:
                os.close(fd)
        assert len(os.listdir("/proc/self/fd")) == before
