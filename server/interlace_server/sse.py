"""Server-sent events: what a source yields, with a word in silence; an hour at most, and no longer than the gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from redis.exceptions import RedisError

from interlace.protocol.errors import InterlaceError
from interlace_server.gateway import Gateway
from interlace_state import log

MEDIA_TYPE = "text/event-stream"
#: Proxies must not keep events back.
HEADERS = {"X-Accel-Buffering": "no"}
_KEEP_ALIVE = 15.0  # seconds of silence
#: A stream ends after so many seconds, and its client comes back: what it may see is looked at again.
_LONGEST = 3600.0


def schema(*names: str) -> dict[str, Any]:
    """Of one event, with its possible names."""
    data = {"type": "string", "contentMediaType": "application/json"}
    event = {"type": "string", "enum": list(names)}
    return {
        "type": "object",
        "required": ["id", "event", "data"],
        "properties": {"id": {"type": "string"}, "event": event, "data": data},
    }


def sent(event_id: str, name: str, data: bytes) -> bytes:
    """An event in the form of server-sent events; ``data`` is JSON, which has no line ends of its own."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), name.encode(), data)


async def stream(
    gateway: Gateway, events: AsyncIterator[bytes], what: str, longest: float = _LONGEST
) -> AsyncIterator[bytes]:
    """Events as they come, for ``longest`` seconds. Ends early, without a word, where its client should resume."""
    clock = asyncio.get_running_loop().time
    end = clock() + longest
    with gateway.drain.stream():
        closing = asyncio.create_task(gateway.drain.closing.wait(), name="events-closing")
        upcoming: asyncio.Future[bytes | None] | None = None
        try:
            while clock() < end and not closing.done():
                upcoming = upcoming or asyncio.ensure_future(anext(events, None))
                await asyncio.wait((upcoming, closing), timeout=_KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
                if not upcoming.done():
                    yield b": still here\n\n"
                    continue
                found, upcoming = upcoming.result(), None
                if found is None:
                    return
                yield found
        except (InterlaceError, RedisError) as error:
            log.warning("events_failed", of=what, error=str(error))
        finally:
            closing.cancel()
            if upcoming is not None:
                upcoming.cancel()
