"""Who has signed in to the pages: a random id in a browser's cookie stands for an API key, for some hours.

Redis has the id's hash, and the key encrypted with the id: whoever reads Redis can neither sign in nor learn a key.
"""

import hashlib
import secrets

from redis.asyncio import Redis

from interlace_state.keys import Keys
from interlace_state.tenants import ApiKey, Tenants


class Visits:
    """The signed-in visitors, across all gateways."""

    def __init__(self, redis: Redis, keys: Keys, tenants: Tenants) -> None:
        self._redis = redis
        self._keys = keys
        self._tenants = tenants

    async def open(self, secret: str, seconds: int) -> str | None:
        """The id of a new visit by this key, 256 random bits; None for a secret that is no live key's."""
        if await self._tenants.find(secret) is None:
            return None
        visit_id = secrets.token_urlsafe(32)
        await self._redis.set(self._name(visit_id), _sealed(visit_id, secret.encode()), ex=seconds)
        return visit_id

    async def find(self, visit_id: str) -> ApiKey | None:
        """The visitor's key; None for one who has left, or whose key has ended since."""
        secret = await self.secret(visit_id)
        return None if secret is None else await self._tenants.find(secret)

    async def secret(self, visit_id: str) -> str | None:
        """The secret that was signed in with, for the visitor alone."""
        sealed = await self._redis.get(self._name(visit_id))
        return None if sealed is None else _sealed(visit_id, sealed).decode()

    async def close(self, visit_id: str) -> None:
        await self._redis.delete(self._name(visit_id))

    def _name(self, visit_id: str) -> str:
        return self._keys.visit(hashlib.sha256(visit_id.encode()).hexdigest())


def _sealed(visit_id: str, data: bytes) -> bytes:
    """Data that only the id opens, or the other way round: a pad as long as the data, used once for each id."""
    pad = hashlib.shake_256(b"interlace visit " + visit_id.encode()).digest(len(data))
    return bytes(one ^ other for one, other in zip(data, pad, strict=True))
