"""Who asks: what a secret opens and how often it was used, by one question to Redis for each request.

Without a secret that is a reading one: who needs no key is let in also where Redis takes no writes.
"""

import time
from dataclasses import dataclass

from redis.asyncio import Redis

from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.scripts import script
from interlace_state.settings.limits import Admission, LimitChanges
from interlace_state.tenants import ApiKey, digest_of

_MINUTE = 60  # seconds
_LONGEST = 256  # characters of a secret


@dataclass(frozen=True)
class Guest:
    """Whoever a request is from."""

    #: None while nobody needs one.
    key: ApiKey | None
    #: The configuration's, and those that an operator has set since over them.
    limits: Admission
    #: Seconds until it may ask again, if it has asked too often in this minute; else 0.
    wait: int


class Entrance:
    """Lets in whoever has a live key; while none was ever minted, whoever the caller says needs none."""

    def __init__(self, redis: Redis, keys: Keys, config: Config) -> None:
        self._redis = redis
        self._keys = keys
        self._config = config
        self._minute = 0
        self._requests = 0
        self._script = redis.register_script(script("enter"))

    async def enter(self, secret: str, *, keyless: str | None = None, counts: bool = True) -> Guest | None:
        """Whoever sends a secret, which may be empty; None if it opens nothing.

        The secret is looked up by its hash, so that no comparison tells how close a guess came. ``keyless``: the tenant
        that needs no key, an administrator, until the first is minted. ``counts``: whether this is a request of its
        minute. Raises RedisError.
        """
        if not 0 < len(secret) <= _LONGEST:
            return await self._enter_without(keyless, counts=counts) if keyless else None
        now = time.time()
        args = (self._keys.prefix, digest_of(secret), keyless or "", now, int(now // _MINUTE), int(counts))
        found = await self._script(keys=[], args=args)
        if found is None:
            return None
        data, changes, requests = found
        return self._guest(ApiKey.model_validate_json(data) if data else None, keyless, changes, requests, now)

    async def _enter_without(self, keyless: str, *, counts: bool) -> Guest | None:
        """Who sends no secret is counted by this process, which then serves one machine's."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hlen(self._keys.api_keys)
            pipe.hget(self._keys.limits, keyless)
            keys, changes = await pipe.execute()
        if keys:
            return None
        now = time.time()
        if (minute := int(now // _MINUTE)) != self._minute:
            self._minute, self._requests = minute, 0
        self._requests += counts
        return self._guest(None, keyless, changes, self._requests, now)

    def _guest(
        self, key: ApiKey | None, keyless: str | None, changes: bytes | None, requests: int, now: float
    ) -> Guest:
        tenant, role = (key.tenant, key.role) if key else (keyless or "", "admin")
        limits = self._config.limits_of(tenant, role)
        if changes:
            changed = LimitChanges.model_validate_json(changes)
            limits = limits.model_copy(update=changed.model_dump(exclude_none=True))
        over = requests > limits.requests_per_minute
        return Guest(key, limits, max(1, int(_MINUTE - now % _MINUTE)) if over else 0)
