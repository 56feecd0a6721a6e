"""The placement loop's decisions, over a real Redis and real checkpoints: what may run, what is refused, what stays."""

import asyncio
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import meeting
import pytest
import tiny

from interlace.protocol.event import Ended
from interlace.protocol.hosting import Origin, Phase
from interlace.protocol.job import JobState
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.desired import Desired
from interlace_state.models import ModelState, Replica
from interlace_state.settings.hosting import DeployConfig, MemoryConfig, OnDemandConfig
from interlace_state.settings.models import Autoscale, ModelConfig
from interlace_state.settings.services import RedisConfig
from interlace_state.store import State, open_state
from interlace_workers.placement.feasible import forbidden
from interlace_workers.placement.headstart import head_starts
from interlace_workers.placement.memory import SHARED_BYTES
from interlace_workers.placement.place import place
from interlace_workers.placement.reconcile import Reconciler
from interlace_workers.spawn import spawn

GPT2, LLAMA = ModelKey(repo_id=tiny.GPT2), ModelKey(repo_id=tiny.LLAMA)


@pytest.fixture
def config(redis_url: str, tmp_path: Path, tiny_models: Path) -> Config:
    return Config(
        redis=RedisConfig(url=redis_url, prefix=f"{tmp_path.name}:"),
        state_dir=tmp_path / "state",
        cache_dir=tmp_path / "cache",
        runtime="process",
        models=(ModelConfig(source=tiny.GPT2, autoscale=Autoscale(most=2, jobs_per_replica=1)),),
    )


@pytest.fixture
async def state(config: Config) -> AsyncIterator[State]:
    async with open_state(config) as state:
        yield state


async def loop(config: Config, state: State, said: list[str] | None = None) -> Reconciler:
    """As the placer starts one, without a runtime: nothing runs, and all is decided."""
    say = ([] if said is None else said).append
    found = Reconciler(config, state, None, say)
    await found.adopt(await place(config, state, say))
    return found


def deployed(key: ModelKey, **settings: object) -> Desired:
    model = ModelConfig.model_validate({"source": key.repo_id, **settings})
    return Desired(key=key, model=model, origin=Origin.DEPLOYED)


async def settled(one: Reconciler, key: ModelKey) -> int:
    """How many replicas of a model may run, once its files have been found."""
    async with asyncio.timeout(120):
        while True:
            await one.look()
            kept = one.kept(key)
            if kept is not None and kept.finding is None and (kept.placement or kept.failed_at or kept.described):
                await one.look()
                return kept.target
            await asyncio.sleep(0.05)


async def wait(state: State, key: ModelKey) -> None:
    await meeting.submit(state, meeting.make_job(model=key))


async def test_as_many_as_the_queue_needs_and_none_for_nobody(config: Config, state: State) -> None:
    one = await loop(config, state)
    assert await settled(one, GPT2) == 0
    await wait(state, GPT2)
    assert await settled(one, GPT2) == 1
    for _ in range(3):
        await wait(state, GPT2)
    assert await settled(one, GPT2) == 2


async def test_records_survive_and_the_file_wins_where_it_has_changed(config: Config, state: State) -> None:
    await loop(config, state)
    await state.desired.put(deployed(LLAMA))
    changed = ModelConfig(source=tiny.GPT2, pin=True)
    await state.desired.change(GPT2, lambda former: former and former.model_copy(update={"model": changed}))

    await loop(config, state)  # the placer starts anew
    records = {record.key: record for record in await state.desired.all()}
    assert (records[GPT2].model.pin, records[LLAMA].origin) == (True, Origin.DEPLOYED)

    bare = config.model_copy(update={"models": (ModelConfig(source=tiny.GPT2),)})
    await loop(bare, state)  # somebody has changed the file
    assert (await state.desired.find(GPT2)) == Desired(
        key=GPT2, model=bare.models[0], origin=Origin.CONFIGURED, configured=bare.models[0], generation=1
    )
    await loop(config.model_copy(update={"models": ()}), state)
    assert [record.key for record in await state.desired.all()] == [LLAMA]


async def test_what_can_never_fit_is_refused_with_the_numbers_and_its_jobs_end(config: Config, state: State) -> None:
    tight = config.model_copy(update={"memory": MemoryConfig(limit_bytes=300 << 20)})
    said: list[str] = []
    one = await loop(tight, state, said)
    job = meeting.make_job(model=GPT2)
    await meeting.submit(state, job)
    assert await settled(one, GPT2) == 0
    hosted = await state.models.find(GPT2)
    assert hosted.state is ModelState.FAILED
    assert hosted.card.failure is not None
    assert hosted.card.failure.startswith("It needs 0.47 GiB of memory, and 0.29 GiB of 0.29 GiB are free.")
    end = await state.events.last(job.id, job.tenant)
    assert isinstance(end, Ended)
    assert (end.state, hosted.card.failure in end.text) == (JobState.ERROR, True)
    assert any(hosted.card.failure in line for line in said)


async def test_the_idle_one_leaves_and_comes_back_with_its_next_job(config: Config, state: State) -> None:
    one = await loop(config.model_copy(update={"memory": MemoryConfig(limit_bytes=600 << 20)}), state)
    await wait(state, GPT2)
    assert await settled(one, GPT2) == 1
    sign = Replica(id="r", state=ModelState.READY, pid=1, node=socket.gethostname())
    await state.models.beat(GPT2, sign)
    await state.desired.put(deployed(LLAMA))
    assert await settled(one, LLAMA) == 0  # GPT2 has a job
    lease = await meeting.lease(state, model=GPT2)
    await state.queue.finish(lease, Ended(state=JobState.COMPLETED))
    await one.look()
    resting = await state.desired.find(GPT2)
    assert resting is not None
    assert resting.resting  # and has left at once: there is no runtime here that would take its time
    assert await settled(one, LLAMA) == 1
    assert await settled(one, GPT2) == 0
    await state.desired.change(LLAMA, lambda former: former and former.model_copy(update={"resting": True}))
    await wait(state, GPT2)
    assert await settled(one, GPT2) == 1
    back = await state.desired.find(GPT2)
    assert back is not None
    assert not back.resting


async def test_replicas_that_have_no_room_are_told_of_with_the_numbers(config: Config, state: State) -> None:
    bounds = {"memory": MemoryConfig(limit_bytes=1000 << 20), "models": ()}
    one = await loop(config.model_copy(update=bounds), state)
    await state.desired.put(deployed(LLAMA))  # idle, and stays: a replica more makes nobody leave
    assert await settled(one, LLAMA) == 1
    await state.desired.put(deployed(GPT2, replicas=3))
    assert await settled(one, GPT2) == 1
    kept = one.kept(GPT2)
    assert kept is not None
    assert kept.shortage is not None
    assert (kept.shortage.has, kept.shortage.needs) == (1, 3)
    assert re.fullmatch(
        r"1 of 3 replicas have room\. Another needs 0\.47 GiB of memory, and 0\.0\d GiB of 0\.98 GiB are free\. "
        r"No model leaves for it\.",
        kept.shortage.text,
    )
    former = kept.shortage
    await state.models.beat(GPT2, Replica(id="r", state=ModelState.READY, pid=1, node=socket.gethostname()))
    await one.look()
    assert kept.moment(time.monotonic(), 0.0).text == former.text
    assert kept.shortage is former  # however much is free by now
    await state.desired.put(deployed(GPT2, replicas=2))
    await one.look()
    assert kept.shortage.text.startswith("1 of 2 replicas have room. Another")
    resting = await state.desired.find(LLAMA)
    assert resting is not None
    assert not resting.resting
    await state.desired.put(deployed(GPT2, replicas=1))
    assert await settled(one, GPT2) == 1
    assert kept.moment(time.monotonic(), 0.0).text == ""


async def test_replicas_that_share_a_process_are_counted_with_it_once(config: Config, state: State) -> None:
    one = await loop(config.model_copy(update={"models": (ModelConfig(source=tiny.GPT2),)}), state)
    assert await settled(one, GPT2) == 1
    kept = one.kept(GPT2)
    assert kept is not None
    assert kept.placement is not None
    kept.placement = replace(kept.placement, share="here")
    for number in range(3):
        held = 2 * kept.placement.need_bytes
        sign = Replica(id=f"r{number}", state=ModelState.READY, pid=1, node="n", resident_bytes=held)
        await state.models.beat(GPT2, sign)
    await one.look()
    assert kept.resident_bytes == kept.placement.need_bytes + 2 * SHARED_BYTES


async def test_a_paused_one_that_jobs_wait_for_says_so(config: Config, state: State) -> None:
    one = await loop(config, state)
    await state.control.pause(GPT2)
    await wait(state, GPT2)
    await settled(one, GPT2)
    await state.desired.rest(GPT2, resting=True)
    await one.look()
    kept = one.kept(GPT2)
    assert kept is not None
    moment = kept.moment(time.monotonic(), 0.0)
    assert (moment.phase, moment.text) == (Phase.QUEUED, "It is paused by its operator.")


async def test_one_that_is_pinned_stays(config: Config, state: State) -> None:
    one = await loop(config.model_copy(update={"memory": MemoryConfig(limit_bytes=600 << 20)}), state)
    await state.desired.put(deployed(LLAMA, pin=True, idle_seconds=0))
    assert await settled(one, LLAMA) == 1
    await wait(state, GPT2)
    assert await settled(one, GPT2) == 0
    hosted = await state.models.find(GPT2)
    assert hosted.card.failure is not None
    assert f"In memory: {LLAMA} (pinned)." in hosted.card.failure
    assert one.kept(LLAMA).target == 1


async def test_one_that_is_deployed_is_never_said_to_be_evicted_before_it_comes(config: Config, state: State) -> None:
    one = await loop(config, state)
    for generation in range(2):  # and so when it starts anew
        await state.desired.put(deployed(LLAMA).model_copy(update={"generation": generation}))
        phases = []
        async with asyncio.timeout(120):
            while Phase.LOADING not in phases:
                await one.look()
                kept = one.kept(LLAMA)
                assert kept is not None
                phases.append(kept.moment(0.0, 0.0).phase)
                await asyncio.sleep(0.05)
        assert set(phases) == {Phase.QUEUED, Phase.LOADING}


async def test_one_that_is_idle_for_long_leaves(config: Config, state: State) -> None:
    one = await loop(config, state)
    await state.desired.put(deployed(LLAMA, idle_seconds=3600.0))
    assert await settled(one, LLAMA) == 1
    kept = one.kept(LLAMA)
    assert kept is not None
    kept.used_at -= 3601.0  # as if so many seconds had passed
    await one.look()
    record = await state.desired.find(LLAMA)
    assert record is not None
    assert record.resting
    await one.look()
    assert one.kept(LLAMA).target == 0
    await wait(state, LLAMA)
    await one.look()
    assert one.kept(LLAMA).target == 1


async def test_one_whose_files_cannot_be_kept_is_no_others_trouble_and_is_told_of_once(
    config: Config, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    one = await loop(config.model_copy(update={"models": ()}), state)
    for asked_at, key in enumerate((GPT2, LLAMA)):
        await state.desired.put(deployed(key).model_copy(update={"asked_at": asked_at}))
    hub = config.state_dir / "store" / "hub"
    hub.mkdir(parents=True)
    (hub / GPT2.slug).write_bytes(b"no folder")
    while one.kept(LLAMA) is None or one.kept(LLAMA).placement is None:
        await one._look_calmly()
        await asyncio.sleep(0.05)
    for _ in range(20):
        await one._look_calmly()
        await asyncio.sleep(0.05)
    (told,) = [vars(record)["fields"] for record in caplog.records if record.message == "placement_failed"]
    assert told["step"] == f"settle {GPT2}"
    assert "Not a directory" in told["error"]
    (hub / GPT2.slug).unlink()
    assert await settled(one, GPT2) == 1


async def test_a_model_comes_also_where_the_folder_for_head_starts_has_gone(config: Config, state: State) -> None:
    with head_starts(spawn()) as ahead:
        one = Reconciler(config, state, ahead, lambda _: None)
        await one.adopt(await place(config, state, lambda _: None))
        shutil.rmtree(ahead.place("model").parent)
        await wait(state, GPT2)
        assert await settled(one, GPT2) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization": "fp8"}, "`quantization: fp8` needs a GPU"),
        ({"executor": "resident", "trusted": ["a"]}, "`isolation: required` leaves no room for resident models"),
        ({"gpus": 1}, "`gpus: 1` are Ray's to reserve: set `runtime: ray`."),
    ],
)
async def test_what_cannot_be_is_refused_with_the_reason(
    config: Config, state: State, settings: dict[str, object], said: str
) -> None:
    one = await loop(config.model_copy(update={"isolation": "required"}), state)
    await state.desired.put(deployed(LLAMA, **settings))
    await settled(one, LLAMA)
    hosted = await state.models.find(LLAMA)
    assert hosted.state is ModelState.FAILED
    assert said in str(hosted.card.failure)
    # Another wish, and it is tried again.
    await state.desired.put(deployed(LLAMA).model_copy(update={"generation": 1}))
    assert await settled(one, LLAMA) == 1
    assert (await state.models.find(LLAMA)).card.failure is None


async def test_one_on_demand_is_known_first_and_loaded_for_its_job(config: Config, state: State) -> None:
    allowed = config.model_copy(update={"on_demand": OnDemandConfig(allow=("all",), size_bytes=1000)})
    one = await loop(allowed, state)
    record = Desired(key=LLAMA, model=ModelConfig(source=tiny.LLAMA), origin=Origin.ON_DEMAND, resting=True)
    await state.desired.put(record)
    assert await settled(one, LLAMA) == 0
    assert "may come on demand (`on_demand.size_bytes`)" in str((await state.models.find(LLAMA)).card.failure)

    allowed = config.model_copy(update={"on_demand": OnDemandConfig(allow=("all",))})
    one = await loop(allowed, state)
    assert await settled(one, LLAMA) == 0
    assert "config.json" in await state.models.file_sizes(LLAMA)
    await wait(state, LLAMA)
    await one.look()
    assert await settled(one, LLAMA) == 1


async def test_one_that_nobody_wants_any_more_is_withdrawn(config: Config, state: State) -> None:
    one = await loop(config, state)
    await state.desired.put(deployed(LLAMA))
    assert await settled(one, LLAMA) == 1
    job = meeting.make_job(model=LLAMA)
    await meeting.submit(state, job)
    await state.desired.remove(LLAMA)
    await one.look()
    assert await state.models.look(LLAMA) is None
    end = await state.events.last(job.id, job.tenant)
    assert isinstance(end, Ended)
    assert "is no longer hosted on this server" in end.text


async def test_what_a_command_may_not_host_is_refused_and_what_the_file_names_is_not(
    config: Config, state: State, tiny_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to(tiny_models)
    bounds = DeployConfig(folders=(tmp_path / "open",), unprotected=False)
    own = ModelConfig(source=str(tiny_models), repo_id="lab/own")
    one = await loop(config.model_copy(update={"deploy": bounds, "models": (own,)}), state)
    assert await settled(one, ModelKey(repo_id="lab/own")) == 1  # the file may
    key = ModelKey(repo_id="lab/asked")
    wishes = {
        "is in no folder that models may be deployed from (`deploy.folders`": {"source": str(tiny_models)},
        f"{tiny_models} is in no folder": {"source": str(tmp_path / "open" / "link")},
        "`deploy.unprotected: false` forbids": {"source": tiny.GPT2, "executor": "resident", "trusted": ["local"]},
        "`trust_remote_code` runs code": {"source": tiny.GPT2, "trust_remote_code": True},
    }
    for reason, wish in wishes.items():
        await state.desired.put(deployed(key, repo_id=key.repo_id, **wish))
        assert await settled(one, key) == 0
        assert reason in ((await state.models.find(key)).card.failure or "")
        await state.desired.remove(key)
        await one.look()
    shutil.copytree(tiny_models, tmp_path / "open" / "model")
    await state.desired.put(deployed(key, repo_id=key.repo_id, source=str(tmp_path / "open" / "model")))
    assert await settled(one, key) == 1


@pytest.mark.parametrize(
    ("changes", "may"),
    [({"replicas": 2}, True), ({"trusted": ("lab", "mallory")}, False), ({"source": tiny.LLAMA}, False)],
)
def test_of_a_resident_model_in_the_file_a_command_may_change_what_is_harmless(
    changes: dict[str, object], may: bool
) -> None:
    file = ModelConfig(source=tiny.GPT2, executor="resident", trusted=("lab",))
    changed = file.model_copy(update=changes)
    assert (forbidden(changed, file, DeployConfig(unprotected=False)) is None) is may
