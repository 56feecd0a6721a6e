"""API keys: made once, stored as hashes, revoked and rotated; rates of requests."""

import asyncio
import time

import pytest
from meeting import lease, make_job, submit
from pydantic import ValidationError

from interlace.protocol.errors import SessionRefused, TooMany, UnknownJob
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.store import State
from interlace_state.tenants import KeyEnded


async def test_a_key_is_found_by_its_secret_and_stored_without_it(state: State, config: Config) -> None:
    assert not await state.tenants.any()
    key, secret = await state.tenants.mint("lab-a", "admin", ["org/model"])
    assert await state.tenants.any()
    assert await state.tenants.find(secret) == key
    assert await state.tenants.find(secret + "x") is None
    stored = str(await state.redis.hgetall(Keys(config.redis.prefix).api_keys))
    assert secret not in stored
    assert secret.removeprefix("il-") not in stored


async def test_a_revoked_key_is_gone_at_once(state: State) -> None:
    key, secret = await state.tenants.mint("lab-a")
    assert await state.tenants.revoke(key.id)
    assert await state.tenants.find(secret) is None
    assert not await state.tenants.revoke(key.id)


async def test_an_expired_key_does_not_work_and_is_still_listed(state: State) -> None:
    key, secret = await state.tenants.mint("lab-a", expires=time.time() - 1)
    assert await state.tenants.find(secret) is None
    assert await state.tenants.all() == [key]
    assert await state.tenants.any()  # else the end of the last key would open the door to everybody


async def test_a_rotated_key_works_until_its_overlap_is_over(state: State) -> None:
    key, old = await state.tenants.mint("lab-a", models=["org/model"])
    made = await state.tenants.rotate(key.id, overlap=60)
    assert made is not None
    fresh, new = made
    assert (fresh.tenant, fresh.role, fresh.models) == (key.tenant, key.role, key.models)
    assert await state.tenants.find(old) is not None
    assert await state.tenants.find(new) == fresh
    assert await state.tenants.rotate("nobody", 1) is None


async def test_the_overlap_of_a_rotated_key_ends(state: State) -> None:
    key, old = await state.tenants.mint("lab-a")
    made = await state.tenants.rotate(key.id, overlap=-1)
    assert made is not None
    assert await state.tenants.find(old) is None
    assert await state.tenants.find(made[1]) == made[0]


async def test_a_key_that_ended_or_was_rotated_has_no_successor(state: State) -> None:
    """A successor has the expiry of its key: it would be dead, or die with the overlap."""
    ended, _ = await state.tenants.mint("lab-a", expires=time.time() - 1)
    key, _ = await state.tenants.mint("lab-a")
    made = await state.tenants.rotate(key.id, overlap=60)
    assert made is not None
    with pytest.raises(KeyEnded, match=f"Key {ended.id} has ended"):
        await state.tenants.rotate(ended.id, 60)
    with pytest.raises(KeyEnded, match=f"{made[0].id} has its place"):
        await state.tenants.rotate(key.id, 60)
    assert len(await state.tenants.all()) == 3


async def test_two_rotations_at_once_make_one_key(state: State) -> None:
    key, _ = await state.tenants.mint("lab-a")
    made = await asyncio.gather(*(state.tenants.rotate(key.id, 60) for _ in range(4)), return_exceptions=True)
    assert sum(not isinstance(one, KeyEnded) for one in made) == 1
    assert len(await state.tenants.all()) == 2


@pytest.mark.parametrize("tenant", ["", "A", "a b", "../a", "a:b", "-a", "a" * 64, "a\n"])
async def test_a_tenants_name_is_safe_in_keys_and_paths(state: State, tenant: str) -> None:
    with pytest.raises(ValidationError):
        await state.tenants.mint(tenant)


async def test_waiting_jobs_count_for_each_tenant(state: State) -> None:
    await submit(state, make_job(), waiting_jobs=1)
    with pytest.raises(TooMany, match=r"limits\.waiting_jobs"):
        await submit(state, make_job(), waiting_jobs=1)
    other = make_job().model_copy(update={"tenant": "lab-b"})
    await submit(state, other, waiting_jobs=1)


async def test_a_cancelled_job_makes_room_at_once(state: State) -> None:
    job = make_job()
    await submit(state, job, waiting_jobs=1)
    held = await lease(state)
    assert await state.queue.cancel(job.id, "enough")
    assert await state.queue.length(job.model) == 0
    assert not await state.queue.renew(held)
    await submit(state, make_job(), waiting_jobs=1, running_jobs=1)
    assert (await lease(state)).attempt == 1


async def test_a_tenant_with_its_share_running_lets_others_pass(state: State) -> None:
    mine = [make_job() for _ in range(2)]
    other = make_job().model_copy(update={"tenant": "lab-b"})
    for job in (*mine, other):
        await submit(state, job, running_jobs=1)
    first, second = await lease(state), await lease(state, "two")
    assert [first.job.id, second.job.id] == [mine[0].id, other.id]
    assert await state.queue.lease(mine[0].model, "three") is None
    await state.queue.give_back(first, "later")
    third = await lease(state, "three")
    assert third.job.tenant == "local"
    assert third.attempt == 1


async def test_what_is_anothers_is_not_there(state: State) -> None:
    job = make_job()
    await submit(state, job)
    with pytest.raises(UnknownJob) as anothers:
        await state.events.last(job.id, "lab-b")
    with pytest.raises(UnknownJob) as nobodys:
        await state.events.last("0" * 32, "lab-b")
    assert str(anothers.value).replace(job.id, "0" * 32) == str(nobodys.value)
    session = await state.sessions.open("lab-b")
    with pytest.raises(SessionRefused) as taken:
        await submit(state, make_job(session))
    with pytest.raises(SessionRefused) as unknown:
        await submit(state, make_job("0" * 32))
    assert str(taken.value) == str(unknown.value)
