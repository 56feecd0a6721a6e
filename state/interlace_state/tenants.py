"""API keys: who may ask. Only hashes are stored; a key is shown once, to whoever makes it."""

import contextlib
import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis
from redis.exceptions import WatchError

from interlace.protocol.ids import NAME
from interlace_state.keys import Keys

Role = Literal["user", "admin"]


class ApiKey(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str = Field(pattern=f"^{NAME}$")
    role: Role = "user"
    #: Repo ids that it reaches; None: all.
    models: tuple[str, ...] | None = None
    #: Unix time.
    created: float
    #: Unix time; None: never.
    expires: float | None = None
    #: The id of the key that was made in its place.
    replaced_by: str | None = None

    def is_live(self) -> bool:
        return self.expires is None or self.expires > time.time()


class KeyEnded(ValueError):
    """A key that has ended, or whose place another has taken, cannot be rotated; the message says which."""


class Tenants:
    """The keys of all tenants."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def mint(
        self, tenant: str, role: Role = "user", models: Sequence[str] | None = None, expires: float | None = None
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, 256 random bits that nobody can ask for again. Raises pydantic.ValidationError."""
        key, secret = _make(tenant, role, models, expires)
        await self._redis.hset(self._keys.api_keys, digest_of(secret), key.model_dump_json())
        return key, secret

    async def find(self, secret: str) -> ApiKey | None:
        """The live key of a secret. It is looked up by its hash, so that no comparison tells how close a guess came."""
        data = await self._redis.hget(self._keys.api_keys, digest_of(secret))
        key = ApiKey.model_validate_json(data) if data else None
        return key if key and key.is_live() else None

    async def any(self) -> bool:
        """Whether a key was ever minted and not revoked: then everybody needs one."""
        return bool(await self._redis.hlen(self._keys.api_keys))

    async def all(self) -> list[ApiKey]:
        """Every key that is not revoked, the oldest first."""
        return sorted((key for _, key in await self._entries()), key=lambda key: key.created)

    async def former(self, key_id: str) -> frozenset[str]:
        """The ids of keys whose place this one has taken, its own among them."""
        before = {key.replaced_by: key.id for key in await self.all() if key.replaced_by is not None}
        found = {key_id}
        while (key_id := before.get(key_id, "")) and key_id not in found:
            found.add(key_id)
        return frozenset(found)

    async def revoke(self, key_id: str) -> bool:
        """Forget a key, from the next request on; False if there is none."""
        gone = [digest for digest, key in await self._entries() if key.id == key_id]
        return bool(gone and await self._redis.hdel(self._keys.api_keys, *gone))

    async def rotate(self, key_id: str, overlap: float) -> tuple[ApiKey, str] | None:
        """A new key like this one, which itself works for ``overlap`` more seconds; None if there is none.

        Raises KeyEnded for a key that no longer works, or that was rotated before.
        """
        name = self._keys.api_keys
        while True:
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(name)  # else a key that is revoked meanwhile would be written back
                found = [(digest, key) for digest, key in await self._entries() if key.id == key_id]
                if not found:
                    return None
                digest, key = found[0]
                _check_rotatable(key)
                fresh, secret = _make(key.tenant, key.role, key.models, key.expires)
                until = min(time.time() + overlap, key.expires or float("inf"))
                old = key.model_copy(update={"expires": until, "replaced_by": fresh.id})
                pipe.multi()
                pipe.hset(name, digest_of(secret), fresh.model_dump_json())
                pipe.hset(name, digest, old.model_dump_json())
                with contextlib.suppress(WatchError):
                    await pipe.execute()
                    return fresh, secret

    async def _entries(self) -> list[tuple[bytes, ApiKey]]:
        found = await self._redis.hgetall(self._keys.api_keys)
        return [(digest, ApiKey.model_validate_json(data)) for digest, data in found.items()]


def digest_of(secret: str) -> str:
    """By which a secret is looked up."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _make(tenant: str, role: Role, models: Sequence[str] | None, expires: float | None) -> tuple[ApiKey, str]:
    key = ApiKey(
        id=secrets.token_hex(4),
        tenant=tenant,
        role=role,
        models=None if models is None else tuple(models),
        created=time.time(),
        expires=expires,
    )
    return key, f"il-{secrets.token_urlsafe(32)}"


def _check_rotatable(key: ApiKey) -> None:
    if key.replaced_by is not None:
        raise KeyEnded(f"Key {key.id} was rotated already: {key.replaced_by} has its place.")
    if not key.is_live():
        raise KeyEnded(f"Key {key.id} has ended.")
