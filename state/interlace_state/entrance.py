"""Who asks: what a secret opens and how often it was used, by one question to Redis for each request."""

import time
from dataclasses import dataclass

from redis.asyncio import Redis

from interlace_state.config import Config
from interlace_state.keys import Keys
from interlace_state.scripts import script
from interlace_state.settings.limits import Admission, LimitChanges
from interlace_state.tenants import ApiKey, Role, digest_of

_MINUTE = 60  # seconds
_LONGEST = 256  # characters of a secret


@dataclass(frozen=True)
class Guest:
    """Whoever a request is from."""

    tenant: str
    role: Role
    #: The configuration's, and those that an operator has set since over them.
    limits: Admission
    #: None while nobody needs one.
    key: ApiKey | None
    #: Seconds until it may ask again, if it has asked too often in this minute; else 0.
    wait: int


class Entrance:
    """Lets in whoever has a live key; while none was ever minted, whoever the caller says needs none."""

    def __init__(self, redis: Redis, keys: Keys, config: Config) -> None:
        self._keys = keys
        self._config = config
        self._enter = redis.register_script(script("enter"))

    async def enter(self, secret: str, *, keyless: str | None = None, counts: bool = True) -> Guest | None:
        """Whoever sends a secret, which may be empty; None if it opens nothing.

        The secret is looked up by its hash, so that no comparison tells how close a guess came. ``keyless``: the tenant
        that needs no key, an administrator, until the first is minted. ``counts``: whether this is a request of its
        minute. Raises RedisError.
        """
        now = time.time()
        digest = digest_of(secret) if 0 < len(secret) <= _LONGEST else ""
        args = (self._keys.prefix, digest, keyless or "", now, int(now // _MINUTE), int(counts))
        found = await self._enter(keys=[], args=args)
        if found is None:
            return None
        data, changes, requests = found
        key = ApiKey.model_validate_json(data) if data else None
        tenant, role = (key.tenant, key.role) if key else (keyless or "", "admin")
        limits = self._config.limits_of(tenant, role)
        if changes:
            changed = LimitChanges.model_validate_json(changes)
            limits = limits.model_copy(update=changed.model_dump(exclude_none=True))
        over = requests > limits.requests_per_minute
        return Guest(tenant, role, limits, key, max(1, int(_MINUTE - now % _MINUTE)) if over else 0)
