"""What happens to models, of all of them in one stream: what was lately, then what is. Who changes it writes it."""

import re
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from interlace.protocol.hosting import ModelEvent, Moment
from interlace_state.keys import Keys

_KEPT = 2_000  # events of all models
_BLOCK_MS = 2_000  # well under `store.ANSWER_SECONDS`, which counts this wait
_BATCH = 256
_STEPS = 20  # events of one download
_NUMBERS = re.compile(r"[\d,.]+")


class Life:
    """The events of all models."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def newest(self) -> str:
        """The id of the last event; `0-0` where there is none."""
        found = await self._redis.xrevrange(self._keys.life, count=1)
        return found[0][0].decode() if found else "0-0"

    async def follow(self, after: str = "0-0", until: str | None = None) -> AsyncIterator[tuple[str, ModelEvent]]:
        """Yield (event id, event) after one id: those that are kept, up to ``until``, or without it what comes, too."""
        while until is None or order(after) < order(until):
            replies = await self._redis.xread({self._keys.life: after}, count=_BATCH, block=_BLOCK_MS)
            if not replies and until is not None:
                return  # it was trimmed meanwhile
            for entry, fields in replies[0][1] if replies else ():
                after = entry.decode()
                if until is not None and order(after) > order(until):
                    return
                yield after, ModelEvent.model_validate_json(fields[b"e"])


def write(pipe: Pipeline, keys: Keys, event: ModelEvent) -> None:
    """Have a pipeline add an event."""
    pipe.xadd(keys.life, {"e": event.model_dump_json(exclude_none=True)}, maxlen=_KEPT, approximate=True)


def is_news(former: Moment | None, moment: Moment) -> bool:
    """Whether a moment is worth an event. In those that only count on, nothing is but each twentieth of a download."""
    if former is None or former.phase is not moment.phase or _part(former) != _part(moment):
        return True
    return _NUMBERS.sub("", former.text) != _NUMBERS.sub("", moment.text)


def order(event_id: str) -> tuple[int, int]:
    """An event id, `MILLISECONDS-NUMBER`, as what it is ordered by."""
    moment, _, number = event_id.partition("-")
    return int(moment), int(number or 0)


def _part(moment: Moment) -> int:
    return _STEPS * (moment.bytes_done or 0) // moment.bytes_total if moment.bytes_total else 0
