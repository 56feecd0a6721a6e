"""What an operator changes while all runs: models and replicas at rest, tenants' weights and limits."""

from dataclasses import dataclass

from redis.asyncio import Redis

from interlace.protocol.errors import InvalidRequest
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.scripts import script
from interlace_state.settings.limits import LEAST_WEIGHT, MOST_WEIGHT, LimitChanges


@dataclass(frozen=True)
class Terms:
    """What a tenant was given at run time."""

    weight: float
    limits: LimitChanges


class Control:
    """The switches that gateways and the queue heed at once."""

    def __init__(self, redis: Redis, keys: Keys, config: Config) -> None:
        self._redis = redis
        self._keys = keys
        self._config = config
        self._weigh = redis.register_script(script("common") + script("weigh"))

    async def pause(self, model: ModelKey) -> None:
        """Start no job of a model; running ones go on, new ones wait."""
        await self._redis.sadd(self._keys.paused, model.slug)

    async def resume(self, model: ModelKey) -> None:
        await self._redis.srem(self._keys.paused, model.slug)
        await self._redis.lpush(self._keys.wake(model.slug), "1")
        await self._redis.expire(self._keys.wake(model.slug), 60)

    async def drain(self, replica_id: str) -> None:
        """Give a replica no more jobs; those that it runs end in peace."""
        await self._redis.sadd(self._keys.drained, replica_id)

    async def undrain(self, replica_id: str) -> None:
        await self._redis.srem(self._keys.drained, replica_id)

    async def drained(self) -> frozenset[str]:
        """Ids of replicas that get no jobs."""
        return frozenset(one.decode() for one in await self._redis.smembers(self._keys.drained))

    async def set_weight(self, tenant: str, weight: float) -> None:
        """Give a tenant ``weight`` times the seconds of one with weight 1. Raises InvalidRequest."""
        if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            raise InvalidRequest(f"`weight` is {weight:g}; expected {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}.")
        slugs = await self._redis.hkeys(self._keys.models)
        await self._weigh(keys=[], args=[self._keys.prefix, tenant, repr(float(weight)), *slugs])

    async def set_limits(self, tenant: str, changes: LimitChanges) -> None:
        """Limits over those of the configuration; what is not named is as configured again."""
        await self._redis.hset(self._keys.limits, tenant, changes.model_dump_json(exclude_none=True))
        if changes.running_jobs is None:
            await self._redis.hdel(self._keys.set_shares, tenant)
        else:
            await self._redis.hset(self._keys.set_shares, tenant, changes.running_jobs)

    async def tenants(self) -> list[str]:
        """Everybody who has had jobs, or to whom an operator or the configuration gives something, by name."""
        names = (self._keys.shares, self._keys.limits, self._keys.weights, self._keys.configured_weights)
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hkeys(name)
            found = await pipe.execute()
        return sorted({one.decode() for some in found for one in some} | set(self._config.tenants))

    async def terms(self, tenant: str) -> Terms:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.weights, tenant)
            pipe.hget(self._keys.configured_weights, tenant)
            pipe.hget(self._keys.limits, tenant)
            weight, configured, limits = await pipe.execute()
        return Terms(float(weight or configured or 1), LimitChanges.model_validate_json(limits or b"{}"))

    async def publish_weights(self) -> None:
        """Make the configuration's weights those of tenants for whom no operator has set another."""
        weights = {tenant: repr(one.weight) for tenant, one in self._config.tenants.items()}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.configured_weights)
            if weights:
                pipe.hset(self._keys.configured_weights, mapping=weights)
            await pipe.execute()
