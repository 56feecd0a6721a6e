"""`WS /subscribe`: one client's socket, from its session id to its job's last frame.

Stock nnsight crashes on a socket that closes without an ERROR frame, so every way out of here sends one.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from redis.exceptions import RedisError

from interlace.protocol.errors import InterlaceError, ShuttingDown
from interlace.protocol.event import Ended, Event, Log, Saved, StateChanged
from interlace.protocol.job import JobState
from interlace_server import metrics, nnsight_wire, torch_frame
from interlace_server.doors.auth import caller_of
from interlace_server.doors.connections import long_frame
from interlace_server.errors import REDIS_DOWN, unexpected
from interlace_server.gateway import Gateway, gateway_of
from interlace_server.nnsight_wire import Update
from interlace_server.routes.results import result_url
from interlace_state import log
from interlace_state.files import Piece
from interlace_state.tasks import cancelled

router = APIRouter()

_LINGER = 5.0  # seconds that a client has to close the socket itself after the last frame
_PATIENCE = 10.0  # seconds that a stream waits for Redis to come back
_RETRY = 0.2  # seconds
_WHOLE = 256 << 10  # bytes of a result up to which it is read at once: what a piece of a larger one takes
_PLACE_PERIOD = 2.0  # seconds between two looks at where a waiting job stands


@router.websocket("/subscribe")
async def subscribe(websocket: WebSocket) -> None:
    gateway = gateway_of(websocket)
    await websocket.accept()
    stream = Stream(websocket, gateway)
    with gateway.drain.stream():
        await stream.run()
    await stream.let_go()


class Stream:
    """A session's socket. The client only listens; all that it can say is that it has gone."""

    def __init__(self, websocket: WebSocket, gateway: Gateway) -> None:
        self._websocket = websocket
        self._gateway = gateway
        self._session_id = ""
        self._job_id = ""
        self._greeted = False
        self._ended = False
        self._waiting = False
        #: Whether it waits for its model.
        self._deploying = False
        self._redis_lost: float | None = None

    async def run(self) -> None:
        """Talk until the job has ended, the client has gone or the server closes."""
        talk = asyncio.create_task(self._talk(), name="stream-talk")
        gone = asyncio.create_task(self._gone(), name="stream-gone")
        closing = asyncio.create_task(self._gateway.drain.closing.wait(), name="stream-closing")
        try:
            await asyncio.wait((talk, gone, closing), return_when=asyncio.FIRST_COMPLETED)
            if not (talk.done() or gone.done()):
                await cancelled(talk)
                with suppress(WebSocketDisconnect):
                    await self._fail(self._goodbye())
            await asyncio.wait((gone, closing), timeout=_LINGER, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled(talk, gone, closing)
            await self._close()

    async def let_go(self) -> None:
        """Cancel the job of a client that has left: stock nnsight does not come back to a stream.

        A gateway that stops does not wait for the end of the grace: it keeps the job, as those of clients that stayed.
        """
        if self._job_id and not self._ended:
            grace = self._gateway.config.lifetimes.disconnect_grace
            try:
                await asyncio.wait_for(self._gateway.drain.closing.wait(), grace)
                log.info("kept", job=self._job_id)
            except TimeoutError:
                await self._give_up()
        log.info("stream_closed", job=self._job_id)

    async def _give_up(self) -> None:
        text = "The client left before the job had ended."
        try:
            if await self._gateway.state.queue.leave(self._job_id, self._session_id, text):
                await self._gateway.state.results.delete_payload(self._job_id)
        except RedisError as error:
            log.warning("redis_failed", path="/subscribe", job=self._job_id, error=str(error))

    async def _gone(self) -> None:
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass

    async def _talk(self) -> None:
        try:
            await self._open()
            self._job_id = await self._job()
            telling = asyncio.create_task(self._tell_places(), name="stream-places")
            try:
                async for event in self._events():
                    await self._tell(event)
            finally:
                await cancelled(telling)
        except WebSocketDisconnect:
            return
        except InterlaceError as error:
            await self._fail(str(error))
        except RedisError as error:
            log.warning("redis_failed", path="/subscribe", job=self._job_id, error=str(error))
            await self._fail(REDIS_DOWN)
        except Exception as error:  # noqa: BLE001  the task's edge: whatever broke, the client must hear of it
            await self._fail(unexpected(error, "/subscribe"))

    async def _open(self) -> None:
        self._session_id = await self._gateway.state.sessions.open(caller_of(self._websocket).tenant)
        await self._greet()

    async def _greet(self) -> None:
        """Give the client its session id, once: it expects one first, even of a session that never was opened."""
        if not self._greeted:
            self._greeted = True
            await self._websocket.send_json({"session_id": self._session_id or secrets.token_hex(16)})

    async def _job(self) -> str:
        """The id of the job that the client posts."""
        while True:
            try:
                job_id = await self._gateway.state.sessions.job_of(self._session_id)
                self._redis_lost = None
            except RedisError as error:
                await self._bear(error)
                continue
            if job_id is not None:
                return job_id

    async def _events(self) -> AsyncIterator[Event]:
        """The job's events, all of them once, across a restart of Redis."""
        after = "0"
        while True:
            try:
                async for event_id, event in self._gateway.state.events.follow(self._job_id, after):
                    after = event_id
                    self._redis_lost = None
                    yield event
                return
            except RedisError as error:
                await self._bear(error)

    async def _bear(self, error: RedisError) -> None:
        """Wait a moment for Redis; raises its error when it has been away for too long."""
        now = time.monotonic()
        self._redis_lost = self._redis_lost or now
        if now - self._redis_lost > _PATIENCE:
            raise error
        await asyncio.sleep(_RETRY)

    async def _tell_places(self) -> None:
        """Say where the job stands while it waits, or what its model does, as that changes."""
        told: Update | None = None
        while not self._ended:
            await asyncio.sleep(_PLACE_PERIOD)
            with suppress(RedisError, WebSocketDisconnect):  # the events will tell of either
                update = await self._place()
                if update is not None and update != told and (self._waiting or self._deploying):
                    told = update
                    await self._send(update.text())

    async def _place(self) -> Update | None:
        state = self._gateway.state
        if self._waiting:
            place = await state.queue.place(self._job_id)
            return None if place is None else nnsight_wire.waits(self._job_id, place)
        if self._deploying and (key := await state.jobs.model_of(self._job_id)) is not None:
            moment = await state.desired.moment(key)
            return None if moment is None else nnsight_wire.deploys(self._job_id, moment)
        return None

    async def _tell(self, event: Event) -> None:
        if isinstance(event, Saved):
            await self._tell_value(event)
            return
        if not isinstance(event, Log):
            queued = isinstance(event, StateChanged) and event.state is JobState.QUEUED
            ready = isinstance(event, StateChanged) and event.model_ready
            self._waiting, self._deploying = queued and ready, queued and not ready
        update = nnsight_wire.render(self._job_id, event)
        result = event.result if isinstance(event, Ended) else None
        if result is None:
            frame: str | bytes = update.text()
        elif result.size <= min(_WHOLE, self._gateway.config.store.inline_bytes):
            frame = update.binary(await self._gateway.state.results.read(self._job_id))
        elif result.size <= self._gateway.config.store.inline_bytes:
            size, stream = await self._gateway.state.results.open(self._job_id)
            self._ended = True
            pieces = metrics.delivered("socket", stream(0, size), size)
            await self._send_in_pieces(update, torch_frame.Hole(size), size, pieces)
            return
        else:
            url = await result_url(self._gateway, self._websocket, self._job_id)
            frame = update.model_copy(update={"data": url}).text()
        self._ended = isinstance(event, Ended)
        with metrics.delivering(frame):
            await self._send(frame)

    async def _tell_value(self, event: Saved) -> None:
        """Give the client a value, which stock nnsight hands to whoever iterates over an `AsyncRemoteBackend`."""
        update = nnsight_wire.saved(self._job_id, event)
        if event.size > self._gateway.config.store.inline_bytes:
            url = f"{self._gateway.public_url(self._websocket)}/v1/jobs/{self._job_id}/values/{event.number}"
            await self._send(update.model_copy(update={"data": url}).text())
            return
        data = event.data
        if data is None and event.size <= _WHOLE:
            data = await self._gateway.state.values.read(self._job_id, event.number)
        if data is not None:
            await self._send(update.binary({event.name: torch_frame.Saved(data)}))
            return
        size, stream = await self._gateway.state.values.open(self._job_id, event.number)
        around = {event.name: torch_frame.Saved(torch_frame.Hole(size))}
        await self._send_in_pieces(update, around, size, stream(0, size))

    async def _send_in_pieces(
        self, update: Update, data: torch_frame.Plain, size: int, pieces: AsyncIterator[Piece]
    ) -> None:
        """Send a binary frame whose hole ``pieces`` fill, of ``size`` bytes; only one of them is held at a time."""
        before, behind = update.around(data)
        await self._websocket.send(long_frame(len(before) + size + len(behind), _between(before, pieces, behind)))

    async def _fail(self, sentence: str) -> None:
        if not self._ended:
            self._ended = True
            await self._greet()
            await self._send(nnsight_wire.failed(self._job_id, sentence).text())

    async def _send(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            await self._websocket.send_bytes(frame)
        else:
            await self._websocket.send_text(frame)

    def _goodbye(self) -> str:
        sentence = str(ShuttingDown())
        if self._job_id:
            sentence += f" Job {self._job_id} is kept: its result can be asked for at /response/{self._job_id} later."
        return sentence

    async def _close(self) -> None:
        """Forget the session and close the socket; either may be gone already."""
        if self._session_id:
            try:
                self._job_id = await self._gateway.state.sessions.close(self._session_id) or self._job_id
            except RedisError as error:
                log.warning("redis_failed", path="/subscribe", error=str(error))
        with suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.close()


async def _between(before: bytes, pieces: AsyncIterator[Piece], behind: bytes) -> AsyncIterator[Piece]:
    yield before
    async for piece in pieces:
        yield piece
    yield behind
