"""Promises of a method's job: progress, cancelling keeps what is done, a lost worker loses nothing, nothing leaks."""

import asyncio
import time
from typing import Any

import pytest
import running
import tiny
import torch
from nnsight import TransformersModel

import interlace
from interlace import JobFailed, Refused
from interlace.protocol.event import Log, Progress
from interlace.protocol.job import JobState

DEADLINE = 240.0  # seconds


def start(client: interlace.Client, seed: int | None = 0, **params: Any) -> interlace.RunningMethod:
    more = {name: params.pop(name) for name in ("edits", "resume", "inputs") if name in params}
    return client.submit_method("kit.steps", model=tiny.GPT2, params=params or None, seed=seed, **more)


def run(client: interlace.Client, **params: Any) -> Any:
    return start(client, **params).result(DEADLINE)


def first_word(job: interlace.RunningMethod, step: int) -> None:
    """Wait until it says that it is so far."""
    for event in job.events(DEADLINE):
        if event is None or (isinstance(event, Progress) and event.step >= step):
            return
    raise AssertionError(f"it ended before: {job.ended}")


def test_it_tells_how_far_it_is(client: interlace.Client) -> None:
    job = start(client, steps=5, pause=1.0)
    first_word(job, 2)
    listed = client.job(job.id)
    assert (listed.method, listed.state) == ("kit.steps@2", JobState.RUNNING)
    assert listed.progress is not None
    assert (listed.progress.of, listed.progress.step >= 2) == (5, True)
    assert job.result(DEADLINE).total == run(client, steps=5).total
    told = [event for event in job.events() if isinstance(event, Progress)]
    assert told[-1].step == 5
    assert told[-1].metrics["total"] == pytest.approx(job.result().total)
    assert [event.text for event in job.events() if isinstance(event, Log)][-1] == "step 5"
    with pytest.raises(JobFailed, match="runs a method"):
        client.follow(job.id).result(DEADLINE)
    after = client.job(job.id)
    assert (after.progress, after.result_size is not None) == (None, True)
    assert {"kit.steps@2", "lens.logit@1", "norm.lens@1"} <= {one.ref for one in client.methods()}


async def test_it_can_be_awaited(client: interlace.Client) -> None:
    jobs = [start(client, steps=2, seed=seed) for seed in (1, 1, 2)]
    one, same, other = await asyncio.gather(*(job.aresult() for job in jobs))
    assert one.total == same.total
    assert one.total != other.total


def test_cancelling_keeps_what_is_done_and_it_can_go_on(client: interlace.Client) -> None:
    whole = run(client, steps=12, seed=3)
    job = start(client, steps=12, pause=0.5, seed=3)
    first_word(job, 3)
    job.cancel()
    assert client.job(job.id).text.startswith("Cancelled by its owner") or client.job(job.id).state.ended
    end = job.wait(DEADLINE)
    assert end.state is JobState.CANCELLED
    part = job.result()
    (warning,) = part.warnings
    assert warning.startswith("stopped at ")
    assert 3 <= int(warning.removeprefix("stopped at ")) < 12
    assert part.envelope.status == "cancelled"
    again = client.submit_method("kit.steps", model=tiny.GPT2, resume=job.id).result(DEADLINE)
    assert again.first > 0
    assert again.total == whole.total  # bit for bit, for the random numbers go on, too
    assert again.envelope.provenance.params == part.envelope.provenance.params
    with pytest.raises(Refused, match=r"`params` is not as in job"):
        start(client, steps=13, resume=job.id, seed=3)
    client.delete(job.id)
    with pytest.raises(Refused, match="no job") as gone:
        start(client, resume=job.id)
    assert gone.value.http_status == 404


def test_one_that_does_not_heed_it_is_stopped(client: interlace.Client) -> None:
    job = start(client, steps=1, fault="deaf")
    first_word(job, 1)
    began = time.monotonic()
    job.cancel()
    end = job.wait(DEADLINE)
    assert (end.state, end.result) == (JobState.CANCELLED, None)
    assert "did not end within 5 s" in end.text
    assert time.monotonic() - began >= 4.9
    with pytest.raises(JobFailed, match="did not end within 5 s"):
        job.result()
    twice = start(client, steps=1, fault="deaf")
    first_word(twice, 1)
    twice.cancel()
    twice.cancel()
    assert twice.wait(DEADLINE).text == "The job was cancelled by its owner."


def test_a_lost_worker_costs_the_steps_since_the_last_checkpoint(
    client: interlace.Client, method_server: running.Running
) -> None:
    whole = run(client, steps=16, seed=5)
    job = start(client, steps=16, pause=0.25, seed=5)
    first_word(job, 7)
    for replica in method_server.replicas():
        replica.kill()
    result = job.result(DEADLINE)
    assert result.total == whole.total
    assert result.first >= 3
    steps = [event.text for event in job.events() if isinstance(event, Log) and event.text.startswith("step ")]
    assert steps.count("step 1") == 1
    assert job.wait().state is JobState.COMPLETED


def test_failures_are_told_and_leave_nothing(client: interlace.Client) -> None:
    before = {one.id for one in client.artifacts.all()}
    with pytest.raises(JobFailed, match=r"ValueError: on purpose"):
        run(client, makes=["data"], fault="fail")
    with pytest.raises(JobFailed, match="exit code 7"):
        run(client, makes=["data"], fault="crash")
    with pytest.raises(JobFailed, match="names artifact:0123456789abcdef"):
        run(client, makes=["data"], fault="lie")
    with pytest.raises(JobFailed, match=r"x in probe\.safetensors is of the type I64"):
        run(client, makes=["data"], fault="spoil")
    with pytest.raises(JobFailed, match="Operation not permitted"):
        run(client, fault="escape")
    with pytest.raises(JobFailed, match="no kind of artifact 'cake'"):
        run(client, makes=["data", "cake"])
    assert {one.id for one in client.artifacts.all()} == before


def test_artifacts_are_owned_and_know_where_they_come_from(
    client: interlace.Client, other: interlace.Client, small: interlace.Client
) -> None:
    source = client.artifacts.keep("data", {"labels": torch.arange(5)}, {"a": 1}, name="labels")
    job = start(client, inputs={"source": source}, makes=["data", "sae"])
    result = job.result(DEADLINE)
    assert result.read == {"source": {"labels": 10}, "config": {"a": 1}}
    made = [client.artifacts.get(ref) for ref in result.artifacts]
    assert [one.kind for one in made] == ["data", "sae"]
    assert [one.name for one in made] == ["my data", "my sae"]
    lineage = made[0].lineage
    assert lineage is not None
    assert (lineage.job, lineage.method, lineage.parents) == (job.id, "kit.steps@2", (source.ref,))
    assert lineage.commit == result.envelope.provenance.revision
    assert torch.equal(client.artifacts.open(made[1]).tensors["x"], torch.arange(4.0))
    for ask in (other.artifacts.get, other.artifacts.open, other.artifacts.delete):
        with pytest.raises(Refused) as unknown:
            ask(made[0])
        assert unknown.value.http_status == 404
    with pytest.raises(Refused, match="There is no artifact") as refused:
        start(other, inputs={"source": source})
    assert refused.value.http_status == 404
    with pytest.raises(JobFailed, match=r"limits\.kept_artifacts"):
        run(small, makes=["data", "data", "data"])
    with pytest.raises(JobFailed, match=r"limits\.artifact_bytes"):
        run(small, makes=["data"], size=100_000)
    assert small.artifacts.all() == []
    assert len(run(small, makes=["data", "data"]).artifacts) == 2
    with pytest.raises(JobFailed, match=r"limits\.kept_artifacts"):
        run(small, makes=["data"])
    for one in small.artifacts.all():
        small.artifacts.delete(one)


def test_a_method_sees_the_edits_that_its_job_names(client: interlace.Client, other: interlace.Client) -> None:
    """Two tenants with different edits of one model at once: each has its own, and nobody else has any."""
    plain = run(client, steps=1).logits
    edits = {}
    for who, sign in ((client, 1.0), (other, -3.0)):
        tensors = {"0.A": torch.full((1, 256), 0.1), "0.B": torch.full((64, 1), sign)}
        config = {"format": 1, "model_type": "gpt2", "edits": [{"layer": 1, "site": "mlp_out", "form": "low_rank"}]}
        edits[who] = who.artifacts.keep("edit", tensors, config)
    alone = {who: run(who, steps=1, edits=[edit]).logits for who, edit in edits.items()}
    assert len({plain, *alone.values()}) == 3
    for _ in range(2):
        jobs = {who: start(who, steps=3, pause=0.1, edits=[edit]) for who, edit in edits.items()}
        bare = start(client, steps=1)
        assert {who: job.result(DEADLINE).logits for who, job in jobs.items()} == alone
        assert bare.result(DEADLINE).logits == plain
    assert jobs[client].result().envelope.provenance.edits == (edits[client].ref,)
    with pytest.raises(Refused, match="There is no artifact"):
        start(other, edits=[edits[client]])


def test_a_trace_sees_the_edits_that_it_names(client: interlace.Client) -> None:
    model = TransformersModel(tiny.GPT2, task="text-generation")
    made = run(client, steps=1, makes=["edit", "peft"]).artifacts

    def logits(*edits: str) -> torch.Tensor:
        with model.trace("The Eiffel Tower is in", backend=client.on(model, edits=edits)):
            found = model.lm_head.output.save()
        return found

    plain, edit, lora, both = logits(), logits(made[0]), logits(made[1]), logits(*made)
    assert torch.equal(plain, logits())
    different = [plain, edit, lora, both]
    assert not any(torch.allclose(a, b) for n, a in enumerate(different) for b in different[n + 1 :])


def test_an_estimate(client: interlace.Client) -> None:
    run(client, steps=1)
    found = client.estimate("kit.steps", model=tiny.GPT2, params={"steps": 7, "size": 1000})
    assert (found.forwards, found.backwards, found.tokens, found.peak_bytes) == (7, 1, 7000, 1000 + (20 << 20))
    assert found.seconds is not None
    assert found.seconds > 0
    with pytest.raises(Refused, match=r"limits\.memory_bytes") as memory:
        client.estimate("kit.steps", model=tiny.GPT2, params={"size": 1 << 50})
    assert memory.value.http_status == 413
    with pytest.raises(Refused, match=r"limits\.wall_seconds"):
        client.estimate("kit.steps", model=tiny.GPT2, params={"steps": 1 << 40})
