"""Who is let in, and how often."""

import time

from interlace_state.config import Config
from interlace_state.settings.limits import LimitChanges
from interlace_state.store import State, open_state


async def test_nobody_needs_a_key_until_the_first_is_made(config: Config, state: State) -> None:
    guest = await state.entrance.enter("", keyless="local")
    assert guest is not None
    assert (guest.key, guest.limits) == (None, config.limits_of("local", "admin"))
    assert await state.entrance.enter("") is None
    left_over = await state.entrance.enter("of another server", keyless="local")
    assert left_over is not None
    assert left_over == guest
    key, secret = await state.tenants.mint("lab-a", models=["some/model"])
    assert await state.entrance.enter("", keyless="local") is None
    guest = await state.entrance.enter(secret, keyless="local")
    assert guest is not None
    assert guest.key == key
    assert await state.tenants.revoke(key.id)
    assert await state.entrance.enter(secret) is None
    assert await state.entrance.enter("", keyless="local") is not None


async def test_a_secret_that_is_no_live_keys_opens_nothing(state: State) -> None:
    _, secret = await state.tenants.mint("lab-a")
    _, ended = await state.tenants.mint("lab-a", expires=time.time() - 1)
    _, lasting = await state.tenants.mint("lab-a", expires=time.time() + 3600)
    for wrong in ("", secret + "x", secret[:-1], ended, "x" * 10_000):
        assert await state.entrance.enter(wrong, keyless="local") is None
    assert await state.entrance.enter(lasting) is not None


async def test_what_an_operator_has_set_holds_for_a_tenants_keys(config: Config, state: State) -> None:
    _, secret = await state.tenants.mint("lab-a")
    _, other = await state.tenants.mint("lab-b")
    await state.control.set_limits("lab-a", LimitChanges(wall_seconds=5))
    guest, unchanged = await state.entrance.enter(secret), await state.entrance.enter(other)
    assert guest is not None
    assert guest.limits == config.limits.model_copy(update={"wall_seconds": 5})
    assert unchanged is not None
    assert unchanged.limits == config.limits


async def test_who_asks_too_often_waits_for_the_next_minute(config: Config, state: State) -> None:
    _, secret = await state.tenants.mint("lab-a")
    _, other = await state.tenants.mint("lab-b")
    _, ended = await state.tenants.mint("lab-a", expires=time.time() - 1)
    few = config.model_copy(update={"limits": config.limits.model_copy(update={"requests_per_minute": 3})})
    async with open_state(few) as strict:

        async def wait(secret: str, *, counts: bool = True) -> int:
            guest = await strict.entrance.enter(secret, counts=counts)
            return guest.wait if guest else -1

        # What does not count, and who is not let in, take nothing of it.
        assert {await wait(secret, counts=False) for _ in range(5)} == {0}
        assert {await wait(ended) for _ in range(5)} == {-1}
        waits = [await wait(secret) for _ in range(8)]
        assert waits[:3] == [0, 0, 0]
        over = [one for one in waits if one]  # a minute may have turned between them, once
        assert len(over) >= 2
        assert all(0 < one <= 60 for one in over)
        assert await wait(other) == 0
