"""What shall be hosted: one record for each model, which commands write and one placement loop makes true."""

import json
import time
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from redis.exceptions import WatchError

from interlace.protocol.hosting import ModelEvent, Moment, Origin, Phase
from interlace.protocol.model import ModelKey
from interlace_state import life
from interlace_state.keys import Keys
from interlace_state.settings.models import ModelConfig

_HISTORY = 50  # moments of one model that are kept


class Desired(BaseModel):
    """One model that shall be hosted."""

    model_config = ConfigDict(frozen=True)

    key: ModelKey
    model: ModelConfig
    origin: Origin
    #: What the configuration file said when it was read last; None for what it does not name.
    configured: ModelConfig | None = None
    #: Whether it stays out of memory until a job comes.
    resting: bool = False
    #: Raised by whoever wants its replicas to start anew.
    generation: int = 0
    #: When somebody asked for it last, in Unix seconds.
    asked_at: float = 0.0


def new_generation() -> int:
    """The generation of a record that is new: of the model's former ones, which the loop may know yet, none had it."""
    return int(time.time() * 1000)


class Desires:
    """All records, and what has become of each."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def all(self) -> list[Desired]:
        found = await self._redis.hvals(self._keys.desired)
        return sorted(map(Desired.model_validate_json, found), key=lambda one: one.key.slug)

    async def find(self, key: ModelKey) -> Desired | None:
        data = await self._redis.hget(self._keys.desired, key.slug)
        return None if data is None else Desired.model_validate_json(data)

    async def change(self, key: ModelKey, change: Callable[[Desired | None], Desired | None]) -> Desired | None:
        """Put what ``change`` makes of the record, and return it; None removes it. Called again if others write."""
        async with self._redis.pipeline(transaction=True) as pipe:
            while True:
                try:
                    await pipe.watch(self._keys.desired)
                    data = await pipe.hget(self._keys.desired, key.slug)
                    former = None if data is None else Desired.model_validate_json(data)
                    new = change(former)
                    if new == former:
                        return former
                    pipe.multi()
                    if new is None:
                        pipe.hdel(self._keys.desired, key.slug)
                    else:
                        pipe.hset(self._keys.desired, key.slug, new.model_dump_json())
                    await pipe.execute()
                    return new
                except WatchError:
                    continue

    async def put(self, record: Desired) -> None:
        await self.change(record.key, lambda _: record)

    async def remove(self, key: ModelKey) -> None:
        """Forget the record; the placement loop stops what runs and takes the model out of the catalogue."""
        await self.change(key, lambda _: None)

    async def rest(self, key: ModelKey, resting: bool) -> Desired | None:
        """Have a model stay out of memory until a job comes, or come back."""
        return await self.change(key, lambda one: one and one.model_copy(update={"resting": resting}))

    async def seed(self, configured: Mapping[ModelKey, ModelConfig]) -> None:
        """Make the configuration's models records.

        What commands have changed since stays, as long as the file says of a model what it said then; what it named
        once and does not name any more goes.
        """
        for record in await self.all():
            if record.configured is not None and record.key not in configured:
                await self.remove(record.key)
        for key, model in configured.items():

            def seeded(former: Desired | None, key: ModelKey = key, model: ModelConfig = model) -> Desired:
                if former is not None and former.configured == model:
                    return former
                generation = 0 if former is None else former.generation + 1
                return Desired(key=key, model=model, origin=Origin.CONFIGURED, configured=model, generation=generation)

            await self.change(key, seeded)

    async def say(self, key: ModelKey, moment: Moment) -> None:
        """What the model does now. Another phase is a line of its history, and so is another reason of a failure."""
        slug, data = key.slug, moment.model_dump_json(exclude_none=True)
        former = await self.moment(key)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.moments, slug, data)
            if life.is_news(former, moment):
                life.write(pipe, self._keys, ModelEvent(model=key.repo_id, slug=slug, moment=moment))
            failed_anew = moment.phase is Phase.FAILED and former is not None and former.text != moment.text
            if former is None or former.phase is not moment.phase or failed_anew:
                pipe.rpush(self._keys.history(slug), data)
                pipe.ltrim(self._keys.history(slug), -_HISTORY, -1)
            await pipe.execute()

    async def moment(self, key: ModelKey) -> Moment | None:
        data = await self._redis.hget(self._keys.moments, key.slug)
        return None if data is None else Moment.model_validate_json(data)

    async def moments(self) -> dict[str, Moment]:
        """What each model does now, by slug."""
        found = await self._redis.hgetall(self._keys.moments)
        return {slug.decode(): Moment.model_validate_json(data) for slug, data in found.items()}

    async def history(self, key: ModelKey) -> list[Moment]:
        """What a model did lately, the newest last."""
        found = await self._redis.lrange(self._keys.history(key.slug), 0, -1)
        return [Moment.model_validate(json.loads(data)) for data in found]
