"""Promise: every layer of the sandbox matters: without it, and with all others, something gets through."""

import asyncio
import io
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnsight
import pytest
import pytest_asyncio
import torch
import zstandard
from hostile import PRELUDE, PROMPT
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from transformers import AutoTokenizer

from interlace.protocol.job import Job, Limits
from interlace.protocol.model import ModelKey
from interlace_workers.executors.base import Done
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load
from interlace_workers.sandbox import LAYERS

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Left out on both sides of a comparison, for they would hide what another layer stops.
_IN_SIGHT = ("jail root", "landlock", "seccomp")


@dataclass(frozen=True)
class Probe:
    """An attempt that one layer stops: its source assigns `got`, true where it gets through."""

    source: str
    aside: tuple[str, ...] = ()


def _shares(kind: str) -> Probe:
    return Probe(f'got = os.readlink("/proc/self/ns/{kind}") == ours["{kind}"]', _IN_SIGHT)


PROBES = {
    "jail root": Probe('got = bool(os.stat("/etc/passwd"))'),
    "process id namespace": _shares("pid"),
    "own session": Probe("got = os.getsid(0) != os.getpid()"),
    "parent death": Probe(
        "want = ctypes.c_int()\nlibc.prctl(2, ctypes.byref(want))\ngot = want.value != 9", ("landlock", "seccomp")
    ),
    "descriptors": Probe(
        """
import stat
got = False
for fd in range(256):
    try:
        got = got or stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        continue
"""
    ),
    "rlimits": Probe(
        "import resource\ngot = resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256 or "
        "resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != 0"
    ),
    "network namespace": Probe("import socket\ngot = bool(socket.create_connection(ear, 1))", ("landlock", "seccomp")),
    "ipc namespace": _shares("ipc"),
    "uts namespace": _shares("uts"),
    "mount namespace": _shares("mnt"),
    "own user id": Probe("got = os.getuid() == operator", ("user namespace",)),
    "user namespace": _shares("user"),
    "no capabilities": Probe(
        """
class Header(ctypes.Structure): _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))
sets = (ctypes.c_uint32 * 6)()
call({"x86_64": 125, "aarch64": 90}[platform.machine()], ctypes.byref(Header(0x20080522, 0)), sets)
got = any(sets)
""",
        ("landlock", "seccomp"),
    ),
    # A change of user makes a process undumpable, too.
    "not dumpable": Probe("got = libc.prctl(3) == 1", ("own user id", "user namespace", "no capabilities")),
    # Landlock and seccomp cannot be had without.
    "no new privileges": Probe("got = libc.prctl(39, 0, 0, 0, 0) == 0", ("landlock", "seccomp")),
    "landlock": Probe('got = bool(os.listdir("/"))'),
    "seccomp": Probe("import socket\ngot = bool(socket.socket())"),
}


class Capture(Backend):  # type: ignore[misc]
    """Serializes a trace as the stock client does, and keeps it."""

    payload = b""

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, True)


Breach = Callable[[tuple[str, ...], str], Awaitable[bool]]


@pytest.fixture(scope="module")
def ear() -> Iterator[tuple[str, int]]:
    """Where somebody on this machine listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def breach(
    tiny_models: Path, ear: tuple[str, int], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Breach]:
    """Whether a source gets through where some layers are left out."""
    client = TransformersModel(
        str(tiny_models), task="text-generation", tokenizer=AutoTokenizer.from_pretrained(tiny_models)
    )
    nnsight.register("tests")
    kinds = ("pid", "ipc", "uts", "mnt", "user", "net")
    names = {
        "ours": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "ear": ear,
        "operator": os.getuid(),
    }
    started: dict[tuple[str, ...], asyncio.Task[ForkExecutor]] = {}
    result = tmp_path_factory.mktemp("layers") / "result"

    def ahead(without: tuple[str, ...]) -> None:
        if without not in started:
            started[without] = asyncio.create_task(_start(_load(tiny_models, without)))

    async def breach(without: tuple[str, ...], source: str) -> bool:
        ahead(without)
        return await _got(await started[without], _payload(client, source, names), result)

    breach.ahead = ahead  # type: ignore[attr-defined]
    yield breach
    for task in started.values():
        await (await task).stop()


async def _start(load: Load) -> ForkExecutor:
    executor = ForkExecutor(load)
    loaded = await executor.start()
    missing = set(loaded.missing)
    # Without the jail's copies of them, libraries in somebody's home cannot be read by another user.
    expected = {"own user id"} & missing if "jail root" in load.without else set()
    assert set(loaded.layers) == set(LAYERS) - set(load.without) - expected, loaded.missing
    return executor


def _load(folder: Path, without: tuple[str, ...]) -> Load:
    return Load(
        path=str(folder),
        task="text-generation",
        dtype="float32",
        trust_remote_code=False,
        threads=1,
        without=without,
    )


def _payload(client: Any, source: str, names: dict[str, Any]) -> bytes:
    code = f"{PRELUDE}\ntry:\n" + "\n".join(f"    {line}" for line in source.splitlines())
    code += "\nexcept OSError as error:\n    got = False"
    backend = Capture()
    with client.trace(PROMPT, backend=backend):
        scope = dict(names)
        exec(code, scope)
        got = nnsight.save(scope["got"])
    return backend.payload


async def _got(executor: ForkExecutor, payload: bytes, result: Path) -> bool:
    job = Job(
        id=secrets.token_hex(16),
        tenant="local",
        model=ModelKey(repo_id="tests/model"),
        compress=True,
        env={"attn_implementation": "sdpa"},
        limits=Limits(),
        payload_bytes=len(payload),
        submitted_at=time.time(),
    )
    result.write_bytes(b"")
    happenings = [happening async for happening in executor.run(job, payload, result)]
    assert isinstance(happenings[-1], Done), happenings[-1]
    data = zstandard.ZstdDecompressor().decompress(result.read_bytes())
    return bool(torch.load(io.BytesIO(data), weights_only=False)["got"])


@pytest.mark.parametrize("layer", LAYERS)
async def test_without_it_something_gets_through(breach: Any, layer: str) -> None:
    assert layer in PROBES, f"no probe shows what {layer!r} stops"
    probe = PROBES[layer]
    breach.ahead(probe.aside)
    for following in LAYERS[LAYERS.index(layer) :][:2]:
        breach.ahead((*PROBES[following].aside, following) if following in PROBES else ())
    assert not await breach(probe.aside, probe.source)
    assert await breach((*probe.aside, layer), probe.source)


async def test_no_probe_is_left_over() -> None:
    assert set(PROBES) == set(LAYERS)
