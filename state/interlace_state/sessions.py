"""Sessions: the ids that tie a client's WebSocket to the job that it posts. Only we mint them."""

import secrets

from redis.asyncio import Redis

from interlace.protocol.errors import SessionRefused
from interlace_state.keys import Keys

_LIFETIME = 3600  # seconds; renewed while the socket is open
_BLOCK_MS = 2_000  # well under `store.ANSWER_SECONDS`, which counts this wait


class Sessions:
    """Open WebSocket sessions, across all gateways."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def open(self, tenant: str) -> str:
        """A new session's id: 128 random bits as 32 hex digits."""
        session_id = secrets.token_hex(16)
        stream = self._keys.session(session_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(stream, {"tenant": tenant}, id="0-1")
            pipe.expire(stream, _LIFETIME)
            await pipe.execute()
        return session_id

    async def job_of(self, session_id: str) -> str | None:
        """The id of the session's job, or None if none was posted within two seconds.

        Raises SessionRefused when the session is gone: no job can be posted for it any more.
        """
        stream = self._keys.session(session_id)
        replies = await self._redis.xread({stream: "0-1"}, count=1, block=_BLOCK_MS)
        if not replies:
            if not await self._redis.expire(stream, _LIFETIME):
                raise SessionRefused("This session is gone: the server has lost it. Please run your request again.")
            return None
        fields: dict[bytes, bytes] = replies[0][1][0][1]
        return fields[b"job"].decode()

    async def close(self, session_id: str) -> str | None:
        """Forget the session, so that a later post with its id is refused; returns its job, if one was posted."""
        stream = self._keys.session(session_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xrange(stream, min="(0-1", count=1)
            pipe.delete(stream)
            entries, _ = await pipe.execute()
        return entries[0][1][b"job"].decode() if entries else None
