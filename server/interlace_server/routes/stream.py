"""`WS /v1/stream`: one socket of our own client, the events of many jobs, and it goes on where another broke off.

The client says, in text frames, which jobs it follows: `{"follow": JOB, "after": EVENT ID or null}`, `{"leave": JOB}`.
It is told, in text frames, `{"job", "id", "event"}` for each event, `{"job", "failed", "status"}` where a job cannot be
followed (without a job: nothing can, and the socket is closed), and `{}` in 15 seconds of silence. An event that comes
with bytes, a picture, or a value or a result of up to 1 MiB (and `store.inline_bytes`), is a binary frame: four bytes,
big-endian, of the length of such a text, the text, then the bytes; larger ones are for HTTP. A client that leaves ends
no job.
"""

import asyncio
import json
import struct
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from redis.exceptions import RedisError

from interlace.protocol import event as words
from interlace.protocol.errors import InterlaceError, InvalidRequest, ShuttingDown, TooMany, UnknownJob, UnknownValue
from interlace.protocol.event import Ended, Event, Picture, Saved
from interlace.protocol.ids import EVENT_ID, JOB_ID
from interlace_server import metrics
from interlace_server.doors.auth import Caller, caller_of
from interlace_server.errors import REDIS_DOWN, unexpected
from interlace_server.gateway import Gateway, gateway_of
from interlace_state import log
from interlace_state.tasks import cancelled

router = APIRouter()

_MOST_JOBS = 256  # followed at a time by one socket
_KEEP_ALIVE = 15.0  # seconds of silence
_IDLE = 900.0  # seconds without a job
#: A socket ends after so many seconds, and its client opens another: what its key may see is looked at again.
_LONGEST = 3600.0
_RETRY = 0.2  # seconds
_INLINE = 1 << 20  # bytes that are held in memory, and in the way of other jobs' events
_HEAD = struct.Struct("!I")

_JobId = Annotated[str, Field(pattern=f"^{JOB_ID}$")]


class _Word(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Follow(_Word):
    """Tell what happened to a job behind an event, then what happens."""

    follow: _JobId
    after: Annotated[str, Field(pattern=f"^{EVENT_ID}$")] | None = None


class Leave(_Word):
    """Tell no more of a job."""

    leave: _JobId


_WORDS: TypeAdapter[Follow | Leave] = TypeAdapter(Follow | Leave)


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    gateway = gateway_of(websocket)
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        try:
            caller = caller_of(websocket)
        except (InterlaceError, RedisError) as error:
            await websocket.send_text(json.dumps(_refusal(error)))
            await websocket.close(1008)
            return
        await Stream(websocket, gateway, caller).run()


class Stream:
    """A client's socket and the jobs that it follows: one connection to Redis, however many they are."""

    def __init__(self, websocket: WebSocket, gateway: Gateway, caller: Caller) -> None:
        self._websocket = websocket
        self._gateway = gateway
        self._caller = caller
        #: Jobs that the client has just asked for, with the event behind which it follows them.
        self._asked: dict[str, str] = {}
        self._following = gateway.state.events.following()
        self._has_work = asyncio.Event()
        self._redis_lost: float | None = None
        self._sending = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._busy_at = self._said_at = self._clock()

    async def run(self) -> None:
        """Listen and tell, until the client has gone, nothing was asked for long, or the server closes."""
        tasks = (
            asyncio.create_task(self._listen(), name="stream-listen"),
            asyncio.create_task(self._follow(), name="stream-follow"),
            asyncio.create_task(self._last(), name="stream-last"),
            asyncio.create_task(self._gateway.drain.closing.wait(), name="stream-closing"),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled(*tasks)
            await self._following.close()
            with suppress(RuntimeError, WebSocketDisconnect):
                await self._websocket.close(1012)

    async def _listen(self) -> None:
        try:
            while True:
                text = await self._websocket.receive_text()
                self._busy_at = self._clock()
                try:
                    word = _WORDS.validate_json(text)
                except ValidationError:
                    raise InvalidRequest(f"Expected a job to follow or to leave, and not {text[:80]!r}.") from None
                if isinstance(word, Leave):
                    self._asked.pop(word.leave, None)
                    self._following.leave(word.leave)
                elif word.follow not in self._asked and word.follow not in self._following:
                    await self._ask(word.follow, word.after or "0")
        except (WebSocketDisconnect, KeyError):  # or it has sent bytes
            return
        except InvalidRequest as error:
            await self._send(_refusal(error))

    async def _ask(self, job_id: str, after: str) -> None:
        if len(self._asked) + len(self._following) >= _MOST_JOBS:
            full = f"This socket follows {_MOST_JOBS} jobs, as many as one can: leave some, or open another."
            await self._send({"job": job_id, "failed": full, "status": TooMany.http_status})
            return
        self._asked[job_id] = after
        self._has_work.set()
        self._following.interrupt()

    async def _last(self) -> None:
        """Break the silence; returns when the socket has had its time."""
        until = self._clock() + _LONGEST
        while (now := self._clock()) < until:
            if self._has_work.is_set():
                self._busy_at = now
            if now - self._busy_at > _IDLE:
                return
            if now - self._said_at >= _KEEP_ALIVE:
                await self._send({})
            await asyncio.sleep(_KEEP_ALIVE / 3)

    async def _follow(self) -> None:
        """Tell of the jobs that are followed; returns when the client has gone."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while await self._has_work.wait():
                with self._gateway.drain.stream():
                    while self._asked or len(self._following):
                        await self._turn()
                self._has_work.clear()

    async def _turn(self) -> None:
        """Take in the jobs that were asked for, then tell what has happened to all."""
        try:
            while self._asked:
                await self._take_in(*next(iter(self._asked.items())))
            if len(self._following):
                async with aclosing(self._following.read()) as news:
                    async for job_id, event_id, data in news:
                        await self._hand_on(job_id, event_id, data)
            self._redis_lost = None
        except RedisError as error:
            self._redis_lost = self._redis_lost or self._clock()
            if self._clock() - self._redis_lost <= _KEEP_ALIVE:
                await asyncio.sleep(_RETRY)
                return
            for job_id in (*self._asked, *self._following):
                await self._give_up(job_id, _refusal(error))
            self._redis_lost = None

    async def _take_in(self, job_id: str, after: str) -> None:
        """Follow a job that was asked for, if it is the caller's. Raises RedisError."""
        state = self._gateway.state
        try:
            last = await state.events.last(job_id, self._caller.tenant)  # or it is not the caller's
            newest, ended = await state.jobs.newest_event(job_id) if after != "0" else ("", False)
            if ended and after == newest:  # nothing will come behind it
                await self._tell(job_id, newest, last)
            elif self._asked.get(job_id) == after:  # it was not left meanwhile
                self._following.add(job_id, after)
        except Exception as error:  # noqa: BLE001  the job's edge, as below
            await self._answer_for(job_id, error)
        if self._asked.get(job_id) == after:
            del self._asked[job_id]

    async def _hand_on(self, job_id: str, event_id: str, data: bytes | None) -> None:
        """Tell an event; None for a job whose events are gone. Raises RedisError."""
        try:
            if data is None:
                raise UnknownJob(f"The events of job {job_id} are gone: its lifetime is over.")
            event = words.decode(data)
            await self._tell(job_id, event_id, event)
            if isinstance(event, Ended):
                self._following.leave(job_id)
        except Exception as error:  # noqa: BLE001  the job's edge: whatever broke, the client must hear of it
            await self._answer_for(job_id, error)

    async def _answer_for(self, job_id: str, error: Exception) -> None:
        """What went wrong with a job is told, and ends it alone; but for Redis' failures, and the client's end."""
        if isinstance(error, InterlaceError):
            await self._give_up(job_id, _refusal(error))
        elif isinstance(error, (RedisError, WebSocketDisconnect, RuntimeError)):
            raise error
        else:
            await self._give_up(job_id, {"failed": unexpected(error, "/v1/stream"), "status": 500})

    async def _give_up(self, job_id: str, refusal: dict[str, Any]) -> None:
        self._asked.pop(job_id, None)
        self._following.leave(job_id)
        await self._send({"job": job_id, **refusal})

    async def _tell(self, job_id: str, event_id: str, event: Event) -> None:
        shown = event.bare if isinstance(event, (Saved, Picture)) else event
        head = {"job": job_id, "id": event_id, "event": shown.model_dump(mode="json")}
        async with self._sending:  # of all jobs of a socket, the bytes of one at a time are in memory
            data = await self._bytes_of(job_id, event)
            with metrics.delivering(data if isinstance(event, Ended) and data is not None else ""):
                await self._put(head, data)

    async def _bytes_of(self, job_id: str, event: Event) -> bytes | None:
        """What goes with an event; None where there is nothing, or too much: it is fetched by HTTP then."""
        most, state = min(_INLINE, self._gateway.config.store.inline_bytes), self._gateway.state
        if isinstance(event, Saved) and event.size <= most:
            return event.data if event.data is not None else await state.values.read(job_id, event.number)
        if isinstance(event, Picture):
            with suppress(UnknownValue):
                return await state.values.read(job_id, event.number)
        if isinstance(event, Ended) and event.result is not None and event.result.size <= most:
            return await state.results.read(job_id)
        return None

    async def _send(self, head: dict[str, Any]) -> None:
        async with self._sending:
            await self._put(head)

    async def _put(self, head: dict[str, Any], data: bytes | None = None) -> None:
        """Called with the lock: a frame waits until the client has taken those before it."""
        self._said_at = self._clock()
        text = json.dumps(head)
        if data is None:
            await self._websocket.send_text(text)
        else:
            said = text.encode()
            await self._websocket.send_bytes(b"".join((_HEAD.pack(len(said)), said, data)))


def _refusal(error: InterlaceError | RedisError) -> dict[str, Any]:
    if isinstance(error, InterlaceError):
        return {"failed": str(error), "status": error.http_status}
    log.warning("redis_failed", path="/v1/stream", error=str(error))
    return {"failed": REDIS_DOWN, "status": ShuttingDown.http_status}
