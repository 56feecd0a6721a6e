"""Whatever three workers do with three tenants' jobs: each ends exactly once, by its holder, and none is lost."""

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from meeting import MODEL, ends, lapse, submitted

from interlace.protocol.event import Ended, Log, StateChanged
from interlace.protocol.job import Job, JobState
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.queue import Lease
from interlace_state.settings.services import LifetimeConfig, RedisConfig, StoreConfig
from interlace_state.store import State, open_state

T = TypeVar("T")
WORKERS = ("a", "b", "c")
TENANTS = ("lab-a", "lab-b", "lab-c")


class Workers(RuleBasedStateMachine):
    """The jobs as they should be, beside those in Redis. Leases that lapsed are used on, as a frozen worker does."""

    redis_url: str
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.config = Config(
            redis=RedisConfig(url=self.redis_url, prefix=f"test:{secrets.token_hex(4)}:"),
            store=StoreConfig(url=str(self.folder)),
            lifetimes=LifetimeConfig(lease=600),  # none lapses by itself
        )
        self.state: State = self.run(self.stack.enter_async_context(open_state(self.config)))
        self.jobs: list[Job] = []
        #: Everything that was ever leased, and who holds which job now.
        self.leases: list[tuple[str, Lease]] = []
        self.holders: dict[str, Lease] = {}
        self.attempts: dict[str, int] = {}
        self.lapsed: set[str] = set()
        self.virtual: dict[bytes, float] = {}
        self.ended: dict[str, str] = {}

    def run(self, todo: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(todo)

    def free(self) -> set[str]:
        """The jobs that a worker may get: those that wait, and those of a silent worker."""
        return {job.id for job in self.jobs} - set(self.ended) - (set(self.holders) - self.lapsed)

    @rule(tenant=st.sampled_from(TENANTS))
    def submit(self, tenant: str) -> None:
        job = self.run(submitted(self.state, tenant))
        self.jobs.append(job)
        self.attempts[job.id] = 0

    @precondition(lambda self: self.free())
    @rule(worker=st.sampled_from(WORKERS))
    def lease(self, worker: str) -> None:
        taken = self.run(self.state.queue.lease(MODEL, worker))
        assert taken is not None
        self.takes(worker, taken)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), most=st.integers(1, 4))
    def company(self, data: st.DataObject, most: int) -> None:
        worker, lease = data.draw(st.sampled_from(self.leases))
        found = self.run(self.state.queue.company(lease, worker, most))
        assert len(found) <= (most if self.holds(lease) else 0)
        for taken in found:
            assert taken.job.tenant == lease.job.tenant
            self.takes(worker, taken)

    def takes(self, worker: str, taken: Lease) -> None:
        assert taken.job.id in self.free()
        self.attempts[taken.job.id] += 1
        assert taken.attempt == self.attempts[taken.job.id]
        assert all(taken.fence > old.fence for _, old in self.leases if old.job == taken.job)
        self.leases.append((worker, taken))
        self.holders[taken.job.id] = taken
        self.lapsed.discard(taken.job.id)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def lapse(self, data: st.DataObject) -> None:
        held = self.holders[data.draw(st.sampled_from(list(self.holders)))]
        self.run(lapse(self.state, self.config, held))
        self.lapsed.add(held.job.id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        _, lease = data.draw(st.sampled_from(self.leases))
        assert self.run(self.state.queue.renew(lease)) is self.holds(lease)
        if self.holds(lease):
            self.lapsed.discard(lease.job.id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        _, lease = data.draw(st.sampled_from(self.leases))
        events = (StateChanged(state=JobState.RUNNING), Log(text="line"))
        assert self.run(self.state.queue.record(lease, *events)) is self.holds(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        _, lease = data.draw(st.sampled_from(self.leases))
        text = secrets.token_hex(4)
        end = Ended(state=JobState.COMPLETED, text=text)
        assert self.run(self.state.queue.finish(lease, end)) is self.holds(lease)
        if self.holds(lease):
            self.end(lease.job.id, text)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), apart=st.booleans())
    def give_back(self, data: st.DataObject, apart: bool) -> None:
        _, lease = data.draw(st.sampled_from(self.leases))
        self.run((self.state.queue.part if apart else self.state.queue.give_back)(lease, "restart"))
        if self.holds(lease):
            self.attempts[lease.job.id] -= 1
            del self.holders[lease.job.id]
            self.lapsed.discard(lease.job.id)

    @precondition(lambda self: len(self.ended) < len(self.jobs))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from([job.id for job in self.jobs if job.id not in self.ended]))
        assert self.run(self.state.queue.cancel(job_id, "enough"))
        assert not self.run(self.state.queue.cancel(job_id, "more than enough"))
        self.end(job_id, "enough")

    @rule()
    def fail_waiting(self) -> None:
        free = self.free()
        assert self.run(self.state.queue.fail_waiting(MODEL, "no weights")) == len(free)
        for job_id in free:
            self.end(job_id, "no weights")

    def holds(self, lease: Lease) -> bool:
        return self.holders.get(lease.job.id) is lease

    def end(self, job_id: str, text: str) -> None:
        self.ended[job_id] = text
        self.holders.pop(job_id, None)
        self.lapsed.discard(job_id)

    @invariant()
    def every_job_is_queued_or_has_ended_once(self) -> None:
        assert self.run(self.state.queue.length(MODEL)) == len(self.jobs) - len(self.ended)
        for job in self.jobs:
            expected = [self.ended[job.id]] if job.id in self.ended else []
            assert self.run(ends(self.state, self.config, job)) == expected
            last = self.run(self.state.events.last(job.id, job.tenant))
            assert isinstance(last, Ended) is (job.id in self.ended)

    @invariant()
    def virtual_time_never_goes_back(self) -> None:
        fair = self.run(self.state.redis.hgetall(Keys(self.config.redis.prefix).fair(MODEL.slug)))
        now = {name: float(value) for name, value in fair.items() if name == b"clock" or name.startswith(b"t:")}
        assert all(now[name] >= value for name, value in self.virtual.items())
        self.virtual = now

    @invariant()
    def a_place_is_told_of_what_waits_and_of_nothing_else(self) -> None:
        for job in self.jobs:
            place = self.run(self.state.queue.place(job.id))
            if job.id in self.ended:
                assert place is None
            elif job.id not in self.holders:
                assert place is not None
                assert 0 <= place.ahead < len(self.jobs)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()


def test_three_workers_in_any_order(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "redis_url", redis_url, raising=False)
    monkeypatch.setattr(Workers, "folder", tmp_path, raising=False)
    run_state_machine_as_test(
        Workers,
        settings=settings(
            max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
