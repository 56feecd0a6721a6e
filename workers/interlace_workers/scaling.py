"""How many replicas of a model shall run: one rule, which both runtimes follow, and its look at the queue."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.exceptions import RedisError

from interlace.protocol.model import ModelKey
from interlace_state import log
from interlace_state.config import Autoscale
from interlace_state.store import State

LOOK = 0.5  # seconds between two looks at a queue


@dataclass(frozen=True)
class Scale:
    """How many replicas shall run, and what speaks for fewer."""

    replicas: int
    #: Since when fewer have been enough, by the clock of whoever asks; None while they are not.
    fewer_since: float | None = None
    #: The most that were needed since then.
    needed: int = 0


def scaled(settings: Autoscale, former: Scale, jobs: int, now: float) -> Scale:
    """The scale after a look at ``now`` (seconds) that found so many ``jobs`` waiting or running.

    Up at once; down when fewer have been enough for ``idle_seconds``, to the most that were needed in these.
    """
    needed = min(settings.most, max(settings.least, math.ceil(jobs / settings.jobs_per_replica)))
    if needed >= former.replicas:
        return Scale(needed)
    if former.fewer_since is None:
        former = Scale(former.replicas, now, needed)
    assert former.fewer_since is not None
    most = max(former.needed, needed)
    if now - former.fewer_since >= settings.idle_seconds:
        return Scale(most)
    return Scale(former.replicas, former.fewer_since, most)


async def follow(state: State, key: ModelKey, settings: Autoscale) -> AsyncIterator[int]:
    """How many replicas of the model shall run, at first and whenever that changes; published as well.

    While Redis is away, it stays as it was.
    """
    scale = Scale(settings.least)
    said = None
    while True:
        with contextlib.suppress(RedisError, OSError):
            scale = scaled(settings, scale, await state.queue.length(key), time.monotonic())
            if scale.replicas != said:
                await state.models.want(key, scale.replicas)
                log.info("scaled", model=str(key), replicas=scale.replicas)
                said = scale.replicas
                yield scale.replicas
        await asyncio.sleep(LOOK)
