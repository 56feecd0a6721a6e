"""The fork executor: each job in a fresh child, and whatever it does there ends with it."""

import asyncio
import contextlib
import os
import resource
import signal
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
import zstandard
from nnsight.modeling.transformers import TransformersModel
from parties import Capture, job_of, run
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interlace_workers.executors import proc
from interlace_workers.executors.base import Done, ExecutorLost, Failed, LoadFailed, Printed, Started
from interlace_workers.executors.cgroup import JobGroup, JobGroups
from interlace_workers.executors.fork import ForkExecutor
from interlace_workers.order import Load

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECONDS = 60.0
WORDS = ["[UNK]", "the", "cat", "sat", "on", "mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(path)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> TransformersModel:
    return TransformersModel(str(folder), task="text-generation", tokenizer=AutoTokenizer.from_pretrained(folder))


def load_of(folder: Path, isolation: str = "required") -> Load:
    return Load(
        path=str(folder),
        task="text-generation",
        dtype="float32",
        trust_remote_code=False,
        threads=1,
        isolation=isolation,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def executor(folder: Path) -> AsyncIterator[ForkExecutor]:
    executor = ForkExecutor(load_of(folder))
    await executor.start()
    yield executor
    await executor.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_executor(folder: Path) -> AsyncIterator[ForkExecutor]:
    """One with `isolation: none`."""
    executor = ForkExecutor(load_of(folder, "none"))
    await executor.start()
    yield executor
    await executor.stop()


def reading(client: TransformersModel) -> bytes:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        hidden = client.transformer.h[0].output.save()
    return backend.payload


async def test_a_job_starts_prints_and_is_done(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import sys

        print("one\ntwo")
        print("three", file=sys.stderr)
        print("four", end="")
        hidden = client.transformer.h[0].output.save()
    ran = await run(executor, backend.payload, tmp_path)
    assert ran.saved["hidden"].shape == (1, 3, 32)
    assert isinstance(ran.happenings[0], Started)
    assert ran.printed == ["one", "two", "three", "four"]
    assert isinstance(ran.end, Done)
    assert ran.end.cost.runtime is not None
    assert ran.end.cost.runtime > 0
    assert ran.end.cost.max_memory_usage is not None


async def test_the_next_job_sees_the_model_as_it_was(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    before = (await run(executor, reading(client), tmp_path)).saved["hidden"]
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import torch as library

        for parameter in client.transformer.h[0]._module.parameters():
            parameter.data.zero_()
        library.set_default_dtype(library.float64)
        library.Tensor.relu = None
        zeroed = client.transformer.h[0].mlp.output.save()
    changed = (await run(executor, backend.payload, tmp_path)).saved["zeroed"]
    assert not changed.any()
    after = (await run(executor, reading(client), tmp_path)).saved["hidden"]
    assert torch.equal(before, after)


async def test_a_result_for_a_fast_link_is_a_frame_of_what_it_was(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend, sizes = Capture(), []
    with client.trace("the cat sat", backend=backend):
        import torch as library

        zeros = library.zeros(100_000).save()
    for raw in (False, True):
        file = tmp_path / "result"
        file.write_bytes(b"")
        job = job_of(backend.payload).model_copy(update={"raw": raw})
        async with contextlib.aclosing(executor.run(job, backend.payload, file)) as happenings:
            assert isinstance([happening async for happening in happenings][-1], Done)
        sizes.append(file.stat().st_size)
        assert len(zstandard.ZstdDecompressor().decompress(file.read_bytes())) > 400_000
    assert sizes[0] < 10_000
    assert sizes[1] > 400_000


async def test_an_error_of_ours_is_raised_to_who_waits_for_the_end(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(proc, "peak_resident_bytes", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await run(executor, reading(client), tmp_path)
    assert (await run(executor, reading(client), tmp_path)).saved


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        ("os._exit(7)", "exit code 7"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("raise SystemExit(4)", "SystemExit: 4"),
    ],
)
async def test_a_job_that_ends_its_process_fails_alone(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path, ending: str, says: str
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        exec(f"import os\n{ending}")
        hidden = client.transformer.h[0].output.save()
    ran = await run(executor, backend.payload, tmp_path)
    assert says in ran.error
    assert isinstance(ran.end, Failed)
    assert ran.end.cost.cpu_seconds is not None  # in ticks of 10 ms
    assert (await run(executor, reading(client), tmp_path)).saved["hidden"].shape == (1, 3, 32)


@pytest.mark.parametrize("number", [6, 9, 11])
async def test_a_signal_that_a_job_sends_itself_ends_it_alone(
    open_executor: ForkExecutor, client: TransformersModel, tmp_path: Path, number: int
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        exec(f"import os; os.kill(os.getpid(), {number})")
        hidden = client.transformer.h[0].output.save()
    assert signal.Signals(number).name in (await run(open_executor, backend.payload, tmp_path)).error


async def test_a_job_that_does_not_end_is_stopped(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True:
            sum(range(10**9))
    started = time.monotonic()
    ran = await run(executor, backend.payload, tmp_path, wall_seconds=1.0)
    assert "ran for 1 s, its limit" in ran.error
    assert "limits.wall_seconds" in ran.error
    assert "`interlace admin limits TENANT wall_seconds=N`" in ran.error
    assert time.monotonic() - started < 60


async def test_a_job_that_closes_what_it_reports_by_is_stopped_once_at_its_time(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import os as system

        system.closerange(3, 256)
        while True:
            pass
    ran = await run(executor, backend.payload, tmp_path, wall_seconds=1.0)
    assert "ran for 1 s, its limit" in ran.error
    assert isinstance(ran.end, Failed)
    assert not ran.end.crashed


async def test_a_job_over_its_processor_time_is_told_so(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ForkExecutor, "threads", -1)  # one second, before its wall time on a few cores, too
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        while True:
            pass
    ran = await run(executor, backend.payload, tmp_path, wall_seconds=60.0)
    assert "used 1 s of processor time" in ran.error
    assert "limits.wall_seconds` (60 s)" in ran.error
    assert isinstance(ran.end, Failed)
    assert not ran.end.crashed


async def test_a_job_over_its_memory_fails_with_the_name_of_the_limit(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import torch as library

        held = library.ones(1 << 28).save()
    ran = await run(executor, backend.payload, tmp_path, memory_bytes=512 << 20)
    assert "limits.memory_bytes" in ran.error


async def test_a_result_over_the_limit_fails_with_its_size(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import torch as library

        held = library.ones(1 << 18).save()
    ran = await run(executor, backend.payload, tmp_path, result_bytes=1 << 16)
    assert "limits.result_bytes" in ran.error
    assert "65,536 bytes" in ran.error


async def test_printing_without_end_is_cut(executor: ForkExecutor, client: TransformersModel, tmp_path: Path) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        for number in range(10_000):
            print("line", number)
        hidden = client.transformer.h[0].output.save()
    ran = await run(executor, backend.payload, tmp_path, log_bytes=200)
    assert "limits.log_bytes" in ran.printed[-1]
    assert sum(map(len, ran.printed)) < 400
    assert "hidden" in ran.saved


async def test_a_saved_view_does_not_ship_its_storage(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import torch as library

        view = library.rand(1 << 20)[:4].save()
    ran = await run(executor, backend.payload, tmp_path, result_bytes=1 << 16)
    assert ran.saved["view"].shape == (4,)
    assert ran.saved["view"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "empty"),
        (b"\x28\xb5\x2f\xfd" + b"junk" * 10, "zstd"),
        (zstandard.compress(b"not a pickle"), "not a serialized nnsight trace"),
        (zstandard.compress(b"\x80\x04N."), "not a serialized nnsight trace"),
        (zstandard.compress(b"\x80\x04K\x01K\x02\x86."), "not a serialized nnsight trace"),
    ],
)
async def test_a_payload_that_is_none_is_refused(
    executor: ForkExecutor, tmp_path: Path, payload: bytes, says: str
) -> None:
    assert says in (await run(executor, payload, tmp_path)).error


async def test_a_payload_that_unpacks_to_too_much_stops_at_the_limit(executor: ForkExecutor, tmp_path: Path) -> None:
    bomb = zstandard.compress(bytes(64 << 20))
    ran = await run(executor, bomb, tmp_path, unpacked_bytes=1 << 20)
    assert "limits.unpacked_bytes" in ran.error


async def test_a_trace_inside_that_says_remote_is_told_not_to(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    client_key = client.to_model_key
    client.to_model_key = lambda: "unused"
    try:
        with client.session(backend=backend):
            with client.trace("the cat sat", remote=True):
                hidden = client.transformer.h[0].output.save()
    finally:
        client.to_model_key = client_key
    assert "leave out `remote=True`" in (await run(executor, backend.payload, tmp_path)).error


async def test_jobs_do_not_share_random_numbers(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import random

        import numpy
        import torch as library

        drawn = [library.rand(1).item(), random.random(), numpy.random.rand()].save()
    first = (await run(executor, backend.payload, tmp_path)).saved["drawn"]
    second = (await run(executor, backend.payload, tmp_path)).saved["drawn"]
    assert all(one != other for one, other in zip(first, second, strict=True))


async def test_the_child_has_no_descriptor_and_no_environment_of_ours(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import os as system

        names = sorted(system.environ).save()
        kinds = {}
        for fd in range(4096):
            try:
                kinds[fd] = system.fstat(fd).st_mode >> 12
            except OSError:
                continue
        kinds = kinds.save()
        lonely = (system.getsid(0) == system.getpid()).save()
    saved = (await run(executor, backend.payload, tmp_path)).saved
    assert not {"HOME", "REDIS_URL", "NDIF_API_KEY", "HF_TOKEN"} & set(saved["names"])
    # Nothing, two pipes for what is printed; then the payload is closed, result and values are files, events a pipe.
    kinds = [saved["kinds"].pop(fd) for fd in (0, 1, 2)]
    assert kinds == [stat.S_IFCHR >> 12, stat.S_IFIFO >> 12, stat.S_IFIFO >> 12]
    assert sorted(saved["kinds"].values()) == [stat.S_IFIFO >> 12, *[stat.S_IFREG >> 12] * 2]
    assert saved["lonely"]


async def test_closing_a_run_early_ends_its_process(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import time as clock

        print("here")
        clock.sleep(600)
    result = tmp_path / "result"
    result.write_bytes(b"")
    running = executor.run(job_of(backend.payload), backend.payload, result)
    async for happening in running:
        if isinstance(happening, Printed):
            break
    assert executor._zygote is not None
    pid = next(iter(executor._zygote._children))  # the next job's is there, too, or comes
    await running.aclose()
    async with asyncio.timeout(SECONDS):
        while pid in executor._zygote._children:
            await asyncio.sleep(0.01)


async def test_a_lost_zygote_is_told_from_a_failed_job(folder: Path, client: TransformersModel, tmp_path: Path) -> None:
    executor = ForkExecutor(load_of(folder))
    await executor.start()
    assert executor._zygote is not None
    os.kill(executor._zygote.pid, 9)
    await executor._zygote._process.wait()
    with pytest.raises(ExecutorLost):
        await run(executor, reading(client), tmp_path)
    await executor.stop()


async def test_a_fork_that_the_machine_refuses_fails_its_job_and_no_other(
    folder: Path, client: TransformersModel, tmp_path: Path
) -> None:
    executor = ForkExecutor(load_of(folder))
    await executor.start()
    assert executor._zygote is not None
    pid = executor._zygote.pid
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import time as clock

        clock.sleep(600)
    result = tmp_path / "result"
    result.write_bytes(b"")
    longest = executor.run(job_of(backend.payload), backend.payload, result)
    assert isinstance(await anext(longest), Started)
    assert executor._spare is not None
    spare = await executor._spare.sealed()
    spare.kill()
    await spare.exited
    most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    free = next(number for number in range(most[1]) if not os.path.lexists(f"/proc/{pid}/fd/{number}"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, most[1]))
    refused = await run(executor, reading(client), tmp_path)
    assert "Too many open files" in refused.error
    assert "`ulimit -n`" in refused.error
    resource.prlimit(pid, resource.RLIMIT_NOFILE, most)
    assert "hidden" in (await run(executor, reading(client), tmp_path)).saved
    assert executor._zygote.pid == pid
    assert not next(iter(executor._running.values()))._child.exited.done()  # the longest goes on
    await longest.aclose()
    await executor.stop()


async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    executor = ForkExecutor(load_of(tmp_path))
    with pytest.raises(LoadFailed, match="no file named model"):
        await executor.start()
    await executor.stop()


async def _kill_while_loading(executor: ForkExecutor, times: int) -> None:
    """Kill the executor's process so many times, each before the model is there."""
    killed: set[int] = set()
    while len(killed) < times:
        zygote = executor._zygote
        if zygote is not None and zygote.pid not in killed and not zygote._loaded.done():
            os.kill(zygote.pid, 9)
            killed.add(zygote.pid)
        await asyncio.sleep(0)  # no longer: a machine that stands still meanwhile lets it load


async def test_a_model_whose_process_is_killed_while_it_loads_is_loaded_again(
    folder: Path, client: TransformersModel, tmp_path: Path
) -> None:
    executor = ForkExecutor(load_of(folder))
    await asyncio.gather(executor.start(), _kill_while_loading(executor, 2))
    ran = await run(executor, reading(client), tmp_path)
    assert ran.saved["hidden"].shape[1] == 3
    await executor.stop()


async def test_a_model_whose_process_ends_at_every_load_cannot_be_loaded(folder: Path) -> None:
    executor = ForkExecutor(load_of(folder))
    killing = asyncio.create_task(_kill_while_loading(executor, 3))
    with pytest.raises(LoadFailed, match="ended 3 times while loading"):
        await executor.start()
    await killing
    await executor.stop()


@pytest.mark.parametrize("is_idle", [True, False])
async def test_a_child_rehearses_only_while_a_core_is_idle(
    folder: Path, client: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_idle: bool
) -> None:
    monkeypatch.setattr(proc, "has_idle_core", lambda: is_idle)
    executor = ForkExecutor(load_of(folder))
    await executor.start()
    assert executor._spare is not None
    child = await executor._spare.sealed()
    await asyncio.sleep(0.1)
    first, second = [(await run(executor, reading(client), tmp_path)).saved["hidden"] for _ in range(2)]
    assert child.is_warm is is_idle
    assert torch.equal(first, second)
    await executor.stop()


async def test_a_job_does_not_wait_for_the_rehearsal_of_its_child(
    folder: Path, client: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "has_idle_core", lambda: False)
    executor = ForkExecutor(load_of(folder))
    await executor.start()
    assert executor._spare is not None
    child = await executor._spare.sealed()
    os.kill(child.pid, signal.SIGSTOP)
    monkeypatch.setattr(proc, "has_idle_core", lambda: True)
    async with asyncio.timeout(SECONDS):
        while child.is_warm is False:  # it cannot have rehearsed
            await asyncio.sleep(0.01)
        running = asyncio.create_task(run(executor, reading(client), tmp_path))
        while executor._spare is not None:
            await asyncio.sleep(0)
        os.kill(child.pid, signal.SIGCONT)
        assert (await running).saved["hidden"].shape[1] == 3
    assert child.is_warm is None
    await executor.stop()


class _Waiting(JobGroups):
    """Groups in a folder of files, which are made when the test says so."""

    asked, go = threading.Event(), threading.Event()

    def add(self, pid: int) -> JobGroup:
        self.asked.set()
        self.go.wait()
        return super().add(pid)


async def test_a_child_that_nobody_waits_for_any_more_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    for name, text in {"cgroup.controllers": "memory", "cgroup.procs": "", "cgroup.subtree_control": ""}.items():
        (tmp_path / name).write_text(text)
    executor = ForkExecutor(load_of(folder))
    await executor.start()
    assert executor._spare is not None
    await executor._spare.sealed()
    await executor._spare.close()
    executor._spare = None

    async def settled() -> int:
        assert executor._zygote is not None
        async with asyncio.timeout(SECONDS):
            while executor._zygote._children:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        return len(os.listdir("/proc/self/fd"))

    before = await settled()
    for turns in range(8):
        taking = asyncio.create_task(executor.take_spare())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(0.003 * turns)
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            child = await taking
            child.kill()
            child.close()
        if executor._spare is not None:
            await executor._spare.close()
            executor._spare = None
        assert await settled() == before, turns
    executor._groups = groups = _Waiting(tmp_path)
    taking = asyncio.create_task(executor.take_spare())
    await asyncio.to_thread(groups.asked.wait)
    taking.cancel()
    groups.go.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await settled() == before
    await executor.stop()


async def test_no_descriptor_is_left_behind(executor: ForkExecutor, client: TransformersModel, tmp_path: Path) -> None:
    payload = reading(client)
    await run(executor, payload, tmp_path)
    before = await _descriptors(executor)
    for _ in range(5):
        await run(executor, payload, tmp_path)
    async with asyncio.timeout(SECONDS):
        while await _descriptors(executor) > before:  # those of the last run may be on their way
            await asyncio.sleep(0.05)


async def _descriptors(executor: ForkExecutor) -> int:
    """How many are open while one child waits for its job."""
    assert executor._spare is not None
    await executor._spare.sealed()
    return len(os.listdir("/proc/self/fd"))


async def test_a_process_that_a_job_leaves_behind_is_killed(
    open_executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import os as system
        import time as clock

        reader, writer = system.pipe()
        if system.fork() == 0:
            system.setsid()
            if system.fork() == 0:
                system.write(writer, str(system.getpid()).encode())
                clock.sleep(600)
            system._exit(0)
        pid = int(system.read(reader, 32)).save()
        hidden = client.transformer.h[0].output.save()
    saved = (await run(open_executor, backend.payload, tmp_path)).saved
    async with asyncio.timeout(SECONDS):
        while Path(f"/proc/{saved['pid']}").exists():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("flood", ["events", "lines"])
async def test_a_flood_from_a_job_does_not_hold_up_the_parent(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path, flood: str
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import os as system

        if flood == "lines":
            while True:
                system.write(1, b"\n" * 4096)
        # The events: of the three pipes the one that nothing is printed to.
        for events in range(3, 32):
            try:
                if system.fstat(events).st_mode >> 12 == 1:
                    break
            except OSError:
                continue
        while True:
            system.write(events, b"\x01\x00\x00\x00\x00" * 800)
    longest = 0.0

    async def watch() -> None:
        """How long the parent itself is busy in one go, however few cores there are."""
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.01)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.create_task(watch())
    ran = await run(executor, backend.payload, tmp_path, wall_seconds=2.0 if flood == "lines" else 60.0)
    watching.cancel()
    assert ("its limit" if flood == "lines" else "channel that reports its end") in ran.error
    assert len(ran.printed) <= 1 + (1 << 20) // 64
    assert longest < 1.5


async def test_stopping_while_the_model_loads_does_not_wait_for_it(folder: Path) -> None:
    executor = ForkExecutor(load_of(folder))
    starting = asyncio.create_task(executor.start())
    while executor._zygote is None:
        await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    loading = executor._zygote
    await executor.stop()
    assert not loading._loaded.done() or loading._loaded.cancelled() or loading._loaded.exception()


async def test_a_value_that_cannot_be_sent_is_named(
    executor: ForkExecutor, client: TransformersModel, tmp_path: Path
) -> None:
    backend = Capture()
    with client.trace("the cat sat", backend=backend):
        import threading

        fine = client.transformer.h[0].output.save()
        guard = threading.Lock().save()
    ran = await run(executor, backend.payload, tmp_path)
    assert "`guard` (a lock)" in ran.error
    assert "Traceback" not in ran.error
