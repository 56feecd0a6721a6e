"""A method's job leaves all that it made or nothing, whatever fails before its end, and waits while Redis is away."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import parties
import pytest
import pytest_asyncio
from meeting import history, lease, submit
from redis.exceptions import ConnectionError as RedisConnectionError

from interlace.protocol.errors import LimitExceeded
from interlace.protocol.event import Ended
from interlace.protocol.job import Job, JobKind, JobState
from interlace.protocol.method import Allowance, Envelope, MethodCall, Payload
from interlace_state.config import Config
from interlace_state.models import ModelCard
from interlace_state.settings.services import LifetimeConfig, RedisConfig, StoreConfig, TelemetryConfig
from interlace_state.store import State, open_state
from interlace_state.tracing import Tracing
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.replicas.replica import Replica
from interlace_workers.replicas.telemetry import Telemetry

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1 << 20
ALLOWANCE = Allowance(
    artifact_bytes=16 * MIB,
    kept_artifact_bytes=16 * MIB,
    kept_artifacts=10,
    checkpoint_bytes=MIB,
    checkpoint_seconds=1.0,
    cancel_grace=30.0,
)


class Line:
    """A line to the real Redis that can be cut: then whoever calls is hung up on, so many times."""

    def __init__(self, url: str) -> None:
        self._redis = url.removeprefix("unix://")
        self._open: set[asyncio.StreamWriter] = set()
        self.refuses = 0
        self.refused = 0

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end."""
        if self.refuses:
            self.refuses -= 1
            self.refused += 1
            writer.close()
            return
        self._open.add(writer)
        answers, commands = await asyncio.open_unix_connection(self._redis)
        await asyncio.gather(_pass(reader, commands), _pass(answers, writer))
        self._open.discard(writer)

    def cut(self, refuses: int) -> None:
        self.refuses = refuses
        for writer in self._open:
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def line(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Line, str]]:
    line, path = Line(redis_url), tmp_path_factory.mktemp("line") / "redis.sock"
    server = await asyncio.start_unix_server(line.connect, path)
    yield line, f"unix://{path}"
    server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patience(line: tuple[Line, str]) -> int:
    """How often redis-py calls before it raises, for one command."""
    async with open_state(Config(redis=RedisConfig(url=line[1]))) as state:
        line[0].cut(1000)
        with pytest.raises(RedisConnectionError):
            await state.redis.ping()
    line[0].refuses = 0
    return line[0].refused


class Worker:
    """A replica over the line, and what it was given."""

    def __init__(self, config: Config, state: State, executor: ForkExecutor) -> None:
        self.config = config
        self.state = state
        self._executor = executor
        key = parties.job_of(b"").model
        telemetry = Telemetry(state.metrics, Tracing(TelemetryConfig(), "test"), key, "one", 1)
        self.replica = Replica(config, state, key, executor, telemetry, name="one", slots=1)

    async def submitted(self) -> Job:
        """A job that makes one artifact."""
        payload = Payload(method="lake.sketch@1", params={"title": "of tiny"}).model_dump_json().encode()
        call = MethodCall(ref="lake.sketch@1", params_sha256="0" * 64, allowance=ALLOWANCE)
        how = {"kind": JobKind.METHOD, "method": call, "compress": False, "env": {}}
        job = parties.job_of(payload).model_copy(update=how)
        card = ModelCard(key=job.model, commit="c" * 40, dtype="float32", config={})
        await self.state.models.publish(card)
        await self.state.results.put_payload(job.id, payload)
        await submit(self.state, job)
        return job

    async def run(self) -> Job:
        """Its end may be none."""
        job = await self.submitted()
        await self.replica._follow(await lease(self.state, model=job.model), self._executor)
        return job

    async def left(self, job: Job) -> tuple[int, int, list[str]]:
        """Artifacts in the index and in the store, and what the lake says of the job."""
        root = Path(self.config.store_url) / "artifacts"
        files = [path for path in root.rglob("*") if path.is_file()]
        runs = [one.status for one in (await self.state.lake._runs.all()).values() if one.id == job.id]
        return len(await self.state.artifacts.all(None)), len(files), runs


@pytest_asyncio.fixture(loop_scope="module")
async def worker(executor: ForkExecutor, line: tuple[Line, str], tmp_path: Path) -> AsyncIterator[Worker]:
    config = Config(
        redis=RedisConfig(url=line[1], prefix=f"test:{secrets.token_hex(4)}:"),
        store=StoreConfig(url=str(tmp_path / "store")),
        lifetimes=LifetimeConfig(lease=600),
        state_dir=tmp_path,
    )
    async with open_state(config) as state:
        yield Worker(config, state, executor)


def before(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[..., Awaitable[None]]) -> None:
    """Have something happen once, just before a call."""
    real = getattr(owner, name)

    async def then(*args: Any, **more: Any) -> Any:
        patch.setattr(owner, name, real)
        await act(*args)
        return await real(*args, **more)

    patch.setattr(owner, name, then)


def owner_of(worker: Worker, where: str) -> tuple[Any, str]:
    part, name = where.split(".")
    return getattr(worker.state, part), name


async def the_end(worker: Worker, job: Job) -> Ended:
    end = (await history(worker.state, job))[-1]
    assert isinstance(end, Ended)
    return end


async def test_a_job_that_goes_well_leaves_what_it_made(worker: Worker) -> None:
    job = await worker.run()
    end = await the_end(worker, job)
    assert (end.state, end.text) == (JobState.COMPLETED, "Your job has been completed.")
    assert await worker.left(job) == (1, 3, ["completed"])
    envelope = Envelope.model_validate_json(await worker.state.results.read(job.id))
    assert [one.kind for one in envelope.artifacts] == ["sketch"]


async def test_a_result_that_cannot_be_stored_takes_all_with_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def occupy(job: Job, staged: Path) -> None:
        (Path(worker.config.store_url) / "results" / job.id).mkdir(parents=True)

    before(monkeypatch, worker.state.results, "put", occupy)
    job = await worker.run()
    end = await the_end(worker, job)
    assert end.state is JobState.ERROR
    assert end.text.startswith("The server could not store your job's result: Is a directory.")
    assert await worker.left(job) == (0, 0, [])


@pytest.mark.parametrize("where", ["artifacts.add", "lake.ran", "results.put", "queue.finish"])
async def test_one_that_is_cancelled_at_its_end_leaves_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def cancel(*args: Any) -> None:
        job_id = args[0].job.id if where == "queue.finish" else next(iter(worker.replica._running))[0]
        await worker.state.queue.cancel(job_id, "Cancelled.")
        worker.replica._stop(job_id)

    before(monkeypatch, *owner_of(worker, where), cancel)
    job = await worker.run()
    assert (await the_end(worker, job)).state is JobState.CANCELLED
    assert await worker.left(job) == (0, 0, [])


@pytest.mark.parametrize("where", ["queue.is_stopping", "artifacts.examine", "artifacts._index", "lake.ran"])
async def test_redis_may_be_away_for_longer_than_its_client_waits(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, line: tuple[Line, str], patience: int, where: str
) -> None:
    async def cut(*_: Any) -> None:
        beside = 2 * patience if where == "queue.is_stopping" else 0  # the journal's
        line[0].cut(patience + 1 + beside)

    before(monkeypatch, *owner_of(worker, where), cut)
    job = await worker.run()
    assert (await the_end(worker, job)).state is JobState.COMPLETED
    assert line[0].refuses == 0
    assert await worker.left(job) == (1, 3, ["completed"])


async def test_what_is_taken_back_while_redis_is_away_is_taken_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, line: tuple[Line, str], patience: int
) -> None:
    async def fail(job: Job, staged: Path) -> None:
        line[0].cut(patience + 1)
        raise LimitExceeded("The result", 1, "bytes", "none")

    before(monkeypatch, worker.state.results, "put", fail)
    job = await worker.run()
    assert (await the_end(worker, job)).state is JobState.ERROR
    assert line[0].refuses == 0
    assert await worker.left(job) == (0, 0, [])
