"""Promise: a value arrives when it is final, not when its job ends, with our own client and with a stock one."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import nnsight
import pytest
import running
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteError
from parity import Lab

import interlace
from interlace.protocol.event import Ended, Saved
from interlace.protocol.job import JobState

PROMPT = "The Eiffel Tower is in the city of"
PROMPTS = (PROMPT, "Madison Square Garden is in", "The Colosseum is in")
STEPS = 5
DEADLINE = 120.0  # seconds
MAKES = {"one": lambda: 1, "generator": lambda: (x for x in ()), "large": lambda: torch.zeros(3_000_000)}


@pytest.fixture
def mine(on_processes: running.Running) -> Iterator[interlace.Client]:
    with interlace.connect(on_processes.url) as client:
        yield client


def for_ever(_: object) -> None:
    while True:
        pass


def kinds(job: interlace.RunningJob) -> list[str]:
    """What happened to a job, in order."""
    return [event.type for event in job.events(DEADLINE) if event is not None]


def hiddens(model: Any) -> list[torch.Tensor]:
    """The hidden state of each prompt, as a local session has it."""
    found = []
    for prompt in PROMPTS:
        with model.trace(prompt):
            hidden = model.transformer.h[2].output.save()
        found.append(hidden)
    return found


def generated(model: Any) -> list[torch.Tensor]:
    """The hidden state of each step, as a local generation has it."""
    with model.generate(PROMPT, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False) as tracer:
        found = [].save()
        for _step in tracer.iter[:STEPS]:
            found.append(model.transformer.h[2].output)
    return list(found)


def assert_same(values: list[interlace.Value], expected: list[torch.Tensor], name: str) -> None:
    assert [value.name for value in values] == [name] * len(expected)
    for value, right in zip(values, expected, strict=True):
        torch.testing.assert_close(value.value, right)


def test_a_block_runs_through_our_client_as_it_does_remotely(models: Lab, mine: interlace.Client) -> None:
    client, local = models.client(tiny.GPT2), models.local(tiny.GPT2)
    with local.trace(PROMPT):
        expected = local.lm_head.output.save()
    for _ in range(2):
        with client.trace(PROMPT, backend=mine.on(client)) as tracer:
            logits = client.lm_head.output.save()
        assert torch.equal(logits, expected)
    assert tracer.backend.meta["runtime"] > 0
    assert tracer.backend.job.cost.cpu_seconds > 0
    with pytest.raises(RemoteError, match="as I wish"), client.trace(PROMPT, backend=mine.on(client)):
        raise ValueError("as I wish")


def test_plain_remote_goes_through_our_client_where_it_is_installed(
    models: Lab, mine: interlace.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")  # nobody answers there
    client = models.client(tiny.GPT2)
    with mine.installed():
        with client.trace(PROMPT, remote=True):
            logits = client.lm_head.output.save()
    assert logits.shape[0] == 1
    with pytest.raises(RemoteError), client.trace(PROMPT, remote=True, blocking=False):
        logits = client.lm_head.output.save()


def test_what_a_block_streams_comes_before_its_end(models: Lab, mine: interlace.Client) -> None:
    client, local = models.client(tiny.GPT2), models.local(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.trace(PROMPT, backend=backend):
        for layer, block in enumerate(client.transformer.h):
            interlace.stream(f"layer {layer}", block.output)
        logits = client.lm_head.output.save()
    job = backend.job
    values = list(job.values())
    assert [value.name for value in values] == [f"layer {layer}" for layer in range(4)]
    assert [value.number for value in values] == [1, 2, 3, 4]
    with local.trace(PROMPT):
        expected = [block.output.save() for block in local.transformer.h].save()
    for (_, value), right in zip(values, expected, strict=True):
        assert torch.equal(value, right)
    assert set(job.result(DEADLINE)) == {"logits"}
    assert kinds(job)[-5:] == ["saved"] * 4 + ["ended"]


def test_a_value_comes_while_its_block_still_runs(models: Lab, mine: interlace.Client) -> None:
    """The block does not end by itself: it is cancelled by whoever got the value."""
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.trace(PROMPT, backend=backend):
        interlace.stream("early", client.transformer.h[0].output)
        while True:
            pass
    job = backend.job
    name, value = next(job.values())
    assert (name, value.shape[0]) == ("early", 1)
    assert job.state is JobState.RUNNING
    job.cancel()
    assert job.wait(DEADLINE).state is JobState.CANCELLED
    with pytest.raises(RemoteError, match="cancelled"):
        job.result()


def test_each_trace_of_a_session(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.session(backend=backend):
        for prompt in PROMPTS:
            with client.trace(prompt):
                unsaved = client.transformer.h[1].output
                hidden = client.transformer.h[2].output.save()
            print("next")
    job = backend.job
    values = list(job.values())
    assert_same(values, hiddens(models.local(tiny.GPT2)), "hidden")
    assert [value.step for value in values] == [None] * 3
    torch.testing.assert_close(job.result(DEADLINE)["hidden"], values[-1].value)
    assert kinds(job)[-1] == "ended"


def test_what_a_list_of_a_session_gains(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    got: list[interlace.Value] = []
    with client.session(backend=mine.on(client, on_value=got.append)):
        found = nnsight.save([])
        for prompt in PROMPTS:
            with client.trace(prompt):
                found.append(client.transformer.h[2].output)
    expected = hiddens(models.local(tiny.GPT2))
    assert_same(got, expected, "found")
    assert len(found) == len(expected)


def test_each_step_of_a_generation(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    with client.generate(PROMPT, backend=backend, **options) as tracer:
        for step in tracer.iter[:STEPS]:
            hidden = client.transformer.h[2].output.save()
            if step == 1:
                interlace.stream("here", step)
    values = list(backend.job.values())
    (here,) = [value for value in values if value.name == "here"]
    assert (here.value, here.step) == (1, 1)
    values.remove(here)
    assert_same(values, generated(models.local(tiny.GPT2)), "hidden")
    assert [value.step for value in values] == list(range(STEPS))


@pytest.mark.parametrize("form", ["open", "list", "with", "session"])
def test_other_forms_of_steps(models: Lab, mine: interlace.Client, form: str) -> None:
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    if form == "open":
        with client.generate(PROMPT, backend=backend, **options) as tracer:
            for _step in tracer.iter[:]:
                hidden = client.transformer.h[2].output.save()
    elif form == "list":
        with client.generate(PROMPT, backend=backend, **options) as tracer:
            hidden = [].save()
            for _step in tracer.iter[:STEPS]:
                hidden.append(client.transformer.h[2].output.save())
    elif form == "with":
        with client.generate(PROMPT, backend=backend, **options) as tracer:
            with tracer.iter[:STEPS]:
                hidden = client.transformer.h[2].output.save()
    else:
        with client.session(backend=backend):
            with client.generate(PROMPT, **options) as tracer:
                hidden = [].save()
                for _step in tracer.iter[:STEPS]:
                    hidden.append(client.transformer.h[2].output)
    values = list(backend.job.values())
    assert_same(values, generated(models.local(tiny.GPT2)), "hidden")
    assert [value.step for value in values] == list(range(STEPS))


def test_what_is_saved_streams_as_far_as_there_is_room(models: Lab, mine: interlace.Client) -> None:
    """The server's limit is 8 MiB. What is over it comes with the result alone, and a line says so."""
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.session(backend=backend):
        for _ in range(4):
            with client.trace(PROMPT):
                found = torch.zeros(800_000).save()
    job = backend.job
    assert [name for name, _ in job.values()] == ["found"] * 2
    (line,) = job.logs()
    assert "streams any more" in line
    assert "limits.result_bytes" in line
    assert job.result(DEADLINE)["found"].numel() == 800_000


async def test_on_an_event_loop(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    backends = [mine.on(client, blocking=False) for _ in range(3)]
    for number, backend in enumerate(backends):
        with client.trace(PROMPT, backend=backend):
            interlace.stream("number", number)
            interlace.stream("hidden", client.transformer.h[0].output)

    async def values_of(job: interlace.RunningJob) -> list[Any]:
        return [(name, value) async for name, value in job.avalues()]

    async with asyncio.timeout(DEADLINE):
        found = await asyncio.gather(*(values_of(backend.job) for backend in backends))
        results = await asyncio.gather(*(backend.job.aresult() for backend in backends))
    assert [values[0] for values in found] == [("number", number) for number in range(3)]
    assert [values[1][0] for values in found] == ["hidden"] * 3
    assert results == [{}] * 3


def test_a_callback_of_a_thread(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    got: list[interlace.Value] = []
    backend = mine.on(client, blocking=False, on_value=got.append)
    with client.session(backend=backend):
        for prompt in PROMPTS:
            with client.trace(prompt):
                hidden = client.transformer.h[2].output.save()
    backend.job.result(DEADLINE)
    for _ in range(2400):
        if len(got) == len(PROMPTS):
            break
        running.time.sleep(0.05)
    assert_same(got, hiddens(models.local(tiny.GPT2)), "hidden")


def test_ctrl_c_cancels(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)

    def interrupt(_: interlace.Value) -> None:
        raise KeyboardInterrupt

    backend = mine.on(client, on_value=interrupt)
    with pytest.raises(KeyboardInterrupt), client.trace(PROMPT, backend=backend):
        for_ever(interlace.stream("early", 1))
    assert mine.job(backend.job.id).state is JobState.CANCELLED


def test_it_shows_what_nnsight_shows(
    models: Lab, mine: interlace.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = models.client(tiny.GPT2)
    with client.trace(PROMPT, backend=mine.on(client)):
        print("nobody shall see this")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", True)
    with client.trace(PROMPT, backend=mine.on(client)):
        print("hello from the block")
    shown = capsys.readouterr().out
    for word in ("QUEUED", "RUNNING", "hello from the block", "COMPLETED"):
        assert word in shown


async def iterated(backend: AsyncRemoteBackend) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """The values that a stock client is given, the words of its updates, the result."""
    async with asyncio.timeout(DEADLINE):
        *updates, result = [update async for update in backend]
    values = [update.data | (update.meta or {}) for update in updates if isinstance(update.data, dict)]
    return values, [update.status.value for update in updates], result


async def test_a_stock_client_that_iterates(models: Lab, on_processes: running.Running) -> None:
    client = models.client(tiny.GPT2)
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    with client.session(backend=backend):
        for prompt in PROMPTS:
            with client.trace(prompt):
                hidden = client.transformer.h[2].output.save()
        interlace.stream("said", {"a": [1, None]})
    values, words, result = await iterated(backend)
    *traced, said = values
    assert said == {"said": {"a": [1, None]}, "number": 4, "step": None}
    for value, right in zip(traced, hiddens(models.local(tiny.GPT2)), strict=True):
        torch.testing.assert_close(value["hidden"], right)
    assert words[-5:] == ["RUNNING"] * 4 + ["COMPLETED"]
    assert set(result) == {"hidden"}


async def test_a_stock_client_gets_what_is_small_unasked(models: Lab, on_processes: running.Running) -> None:
    client = models.client(tiny.GPT2)
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    with client.session(backend=backend):
        for size in (1000, 1_000_000, 1000):
            with client.trace(PROMPT):
                found = torch.zeros(size).save()
        interlace.stream("large", torch.zeros(1_000_000))
    values, _, result = await iterated(backend)
    assert [value["found"].numel() for value in values[:-1]] == [1000]
    assert values[-1]["large"].numel() == 1_000_000
    assert result["found"].numel() == 1000


def test_a_stock_client_that_waits_bears_it(models: Lab, on_processes: running.Running) -> None:
    client = models.client(tiny.GPT2)
    with client.trace(PROMPT, remote=True):
        interlace.stream("name", client.transformer.h[0].output)
        logits = client.lm_head.output.save()
    assert logits.shape[0] == 1


def test_a_local_trace_gives_to_whoever_receives(models: Lab) -> None:
    local = models.local(tiny.GPT2)
    got: list[Any] = []
    with local.trace(PROMPT):
        interlace.stream("nobody", 1)
    with interlace.receiving(lambda name, value: got.append((name, value))):
        with local.trace(PROMPT):
            hidden = interlace.stream("hidden", local.transformer.h[0].output).save()
    assert [name for name, _ in got] == ["hidden"]
    assert got[0][1] is hidden


def test_what_cannot_be_streamed_says_why(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    for name, value, says in (
        ("", "one", "1 to 256 bytes"),
        ("n" * 257, "one", "1 to 256 bytes"),
        (7, "one", "expected text"),
        ("generator", "generator", "cannot be sent"),
        ("large", "large", "limits.result_bytes"),
    ):
        with pytest.raises(RemoteError, match=says), client.trace(PROMPT, backend=mine.on(client)):
            interlace.stream(name, MAKES[value]())


def test_values_lie_with_the_job_and_go_with_it(
    models: Lab, mine: interlace.Client, on_processes: running.Running
) -> None:
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.trace(PROMPT, backend=backend):
        interlace.stream("small", torch.arange(3))
        interlace.stream("large", torch.arange(100_000))
    job = backend.job
    small, large = job.values()
    assert torch.equal(small.value, torch.arange(3))
    assert torch.equal(large.value, torch.arange(100_000))
    url = f"{on_processes.url}/v1/jobs/{job.id}/values"
    for number, numel in ((1, 3), (2, 100_000)):
        assert interlace._jobs.load(httpx.get(f"{url}/{number}", timeout=60).content).numel() == numel
    assert httpx.get(f"{url}/3", timeout=60).status_code == 404
    shown = [event for _, event in mine.events(job.id) if isinstance(event, Saved)]
    assert [(event.name, event.data) for event in shown] == [("small", None), ("large", None)]
    folder = on_processes.state_dir / "store" / "values" / job.id
    assert [file.name for file in folder.iterdir()] == ["2"]
    mine.delete(job.id)
    assert httpx.get(f"{url}/2", timeout=60).status_code == 404
    assert not folder.exists()


def test_a_job_that_is_run_again_starts_over(models: Lab, mine: interlace.Client) -> None:
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.trace(PROMPT, backend=backend):
        interlace.stream("first", 1)
        interlace.stream("second", 2)
        exec("import ctypes; ctypes.string_at(0)")
    job = backend.job
    assert [(value.number, value.name) for value in job.values()] == [(1, "first"), (2, "second")]
    with pytest.raises(RemoteError, match="It was run 2 times"):
        job.result(DEADLINE)
    numbers = [event.number for _, event in mine.events(job.id) if isinstance(event, Saved)]
    assert numbers == [1, 2, 1, 2]


def test_somebody_comes_back_to_a_job(models: Lab, mine: interlace.Client, on_processes: running.Running) -> None:
    client = models.client(tiny.GPT2)
    backend = mine.on(client, blocking=False)
    with client.trace(PROMPT, backend=backend):
        interlace.stream("early", 1)
        logits = client.lm_head.output.save()
    first = backend.job.result(DEADLINE)
    with interlace.connect(on_processes.url) as another:
        job = another.follow(backend.job.id)
        assert [value.name for value in job.values()] == ["early"]
        assert torch.equal(job.result(DEADLINE)["logits"], first["logits"])
        end = job.ended
        assert isinstance(end, Ended)
        with pytest.raises(interlace.Refused, match="There is no job"):
            another.follow("0" * 32).wait(DEADLINE)
