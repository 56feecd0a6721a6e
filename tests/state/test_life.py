"""What happens to models is one stream: steps of each, its going, and of what only counts on, a part."""

import asyncio
from itertools import pairwise

from interlace.protocol.hosting import ModelEvent, Moment, Phase
from interlace.protocol.model import ModelKey
from interlace_state.life import is_news
from interlace_state.models import ModelCard
from interlace_state.store import State

KEY, OTHER = ModelKey(repo_id="lab/model"), ModelKey(repo_id="lab/other")


def moment(phase: Phase, text: str = "", done: int | None = None, total: int | None = None) -> Moment:
    return Moment(phase=phase, text=text, at=1.0, bytes_done=done, bytes_total=total)


async def kept(state: State, after: str = "0-0") -> list[tuple[str, ModelEvent]]:
    return [found async for found in state.life.follow(after, await state.life.newest())]


async def test_the_steps_of_all_models_are_kept_and_then_what_comes(state: State) -> None:
    assert await kept(state) == []
    await state.models.publish(ModelCard(key=KEY, commit="0" * 40, dtype="float32", config={}))
    for key, step in ((KEY, Phase.LOADING), (OTHER, Phase.QUEUED), (KEY, Phase.READY)):
        await state.desired.say(key, moment(step))
    found = await kept(state)
    assert [(event.model, event.moment and event.moment.phase) for _, event in found] == [
        ("lab/model", Phase.LOADING),
        ("lab/other", Phase.QUEUED),
        ("lab/model", Phase.READY),
    ]
    assert {event.slug for _, event in found} == {KEY.slug, OTHER.slug}
    assert await kept(state, after=found[1][0]) == found[2:]

    following = state.life.follow(found[-1][0])
    upcoming = asyncio.ensure_future(anext(following))
    for _ in range(2):  # of two, one takes it out of the catalogue
        await state.models.withdraw(KEY)
    await state.desired.say(OTHER, moment(Phase.EVICTED))
    gone = (await asyncio.wait_for(upcoming, 60))[1]
    assert gone == ModelEvent(model="lab/model", slug=KEY.slug, moment=None)
    assert (await asyncio.wait_for(anext(following), 60))[1].model == "lab/other"


def test_a_download_is_twenty_events_and_numbers_that_move_are_none() -> None:
    steps = [moment(Phase.DOWNLOADING, done=done, total=1000) for done in range(0, 1001, 2)]
    assert sum(is_news(*pair) for pair in pairwise(steps)) == 20
    waits = moment(Phase.QUEUED, "It needs 1,200 MiB; 800.5 are free.")
    assert not is_news(waits, moment(Phase.QUEUED, "It needs 1,200 MiB; 790 are free."))
    assert is_news(waits, moment(Phase.QUEUED, "It waits for lab/other."))
    assert is_news(None, waits)
    assert is_news(waits, moment(Phase.LOADING, waits.text))
