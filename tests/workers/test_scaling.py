"""How many replicas shall run: the rule by itself, and its look at a real queue."""

from collections.abc import AsyncIterator
from pathlib import Path

import meeting
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace_state.config import Config
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.settings.models import Autoscale, ModelConfig
from interlace_state.settings.services import RedisConfig
from interlace_state.store import State, open_state
from interlace_workers.placement.scaling import Scale, rule, scaled

_IDLE = 10.0


@st.composite
def settings(draw: st.DrawFn) -> Autoscale:
    least = draw(st.integers(0, 4))
    return Autoscale(
        least=least,
        most=draw(st.integers(max(1, least), 8)),
        jobs_per_replica=draw(st.integers(1, 5)),
        idle_seconds=_IDLE,
    )


#: Looks at a queue: seconds since the one before, and jobs that it found.
looks = st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 60)), min_size=1, max_size=40)


@given(settings(), looks)
def test_never_out_of_bounds_and_never_too_few(rule: Autoscale, found: list[tuple[float, int]]) -> None:
    scale, now = Scale(rule.least), 0.0
    for seconds, jobs in found:
        now += seconds
        scale = scaled(rule, scale, jobs, now)
        assert rule.least <= scale.replicas <= rule.most
        assert scale.replicas == rule.most or scale.replicas * rule.jobs_per_replica >= jobs


@given(settings(), looks)
def test_down_only_when_fewer_were_enough_for_all_of_the_time(rule: Autoscale, found: list[tuple[float, int]]) -> None:
    scale, now = Scale(rule.least), 0.0
    seen: list[tuple[float, int]] = []
    for seconds, jobs in found:
        now += seconds
        former, scale = scale, scaled(rule, scale, jobs, now)
        seen.append((now, jobs))
        if scale.replicas < former.replicas:
            recent = [count for at, count in seen if at >= now - _IDLE]
            assert now - seen[0][0] >= _IDLE
            assert all(count <= scale.replicas * rule.jobs_per_replica for count in recent)


@given(settings(), st.integers(0, 60))
def test_a_queue_that_stays_gets_what_it_needs_and_no_more(rule: Autoscale, jobs: int) -> None:
    for start in (rule.least, rule.most):
        scale = scaled(rule, Scale(start), jobs, 0.0)
        scale = scaled(rule, scale, jobs, _IDLE)
        assert scale.replicas == min(rule.most, max(rule.least, -(-jobs // rule.jobs_per_replica)))
        assert scaled(rule, scale, jobs, 2 * _IDLE).replicas == scale.replicas


def test_one_job_between_keeps_a_replica() -> None:
    rule = Autoscale(least=0, most=1, idle_seconds=_IDLE)
    scale = Scale(0)
    for now, jobs, replicas in ((0, 1, 1), (1, 0, 1), (10, 1, 1), (12, 0, 1), (21, 0, 1), (22, 0, 0)):
        scale = scaled(rule, scale, jobs, float(now))
        assert scale.replicas == replicas, now


def test_what_is_over_the_most_goes_at_once() -> None:
    """An operator who asks for fewer gets fewer, however long the others would have stayed for the queue."""
    former = Scale(13, fewer_since=0.0, needed=13)
    assert scaled(Autoscale(least=1, most=1), former, 0, 1.0) == Scale(1)
    by_need = scaled(Autoscale(least=1, most=4, idle_seconds=_IDLE), former, 0, 1.0)
    assert by_need.replicas == 4


@pytest.fixture
async def state(redis_url: str, tmp_path: Path) -> AsyncIterator[State]:
    redis = RedisConfig(url=redis_url, prefix=f"{tmp_path.name}:")
    async with open_state(Config(redis=redis, state_dir=tmp_path)) as state:
        await state.models.publish(ModelCard(key=meeting.MODEL, commit="0" * 40, dtype="float32", config={}))
        yield state


def test_there_is_one_form_of_rule() -> None:
    assert rule(ModelConfig(source="a", replicas=3)) == Autoscale(least=3, most=3)
    assert rule(ModelConfig(source="a", autoscale=Autoscale(most=2))).least == 0
    assert rule(ModelConfig(source="a", autoscale=Autoscale(most=2), pin=True)).least == 1


async def test_a_model_at_rest_is_neither_broken_nor_loading(state: State) -> None:
    key = meeting.MODEL
    await state.models.want(key, 0)
    assert (await state.models.find(key)).state is ModelState.COLD
    await state.models.beat(key, Replica(id="r", state=ModelState.DEPLOYING, pid=1, node="n"))
    assert (await state.models.find(key)).state is ModelState.DEPLOYING
    await state.models.forget_replicas(key)
    card = (await state.models.find(key)).card
    await state.models.publish(card.model_copy(update={"failure": "no memory"}))
    assert (await state.models.find(key)).state is ModelState.FAILED
    await state.models.withdraw(key)
    await state.models.publish(card)
    assert (await state.models.find(key)).wanted is None
