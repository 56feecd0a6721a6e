"""The kept WebSockets of a client: events of many jobs, read by a thread each; one that breaks goes on where it was."""

import json
import struct
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import websocket
from pydantic import TypeAdapter, ValidationError

from interlace._errors import Refused, Unreachable
from interlace._http import SILENCE
from interlace.protocol.errors import InterlaceError
from interlace.protocol.event import Ended, Event

_CONNECT = 10.0  # seconds
_PATIENCE = 120.0  # seconds that the server may be gone before its jobs are given up
_LONGEST_PAUSE = 5.0  # seconds between two tries
_MOST_JOBS = 200  # that one socket follows; servers take 256, and learn a moment later that one has ended
_STEADY = 5.0  # seconds after which a connection has held
#: Of a handshake: what a proxy or a server says that will be back.
_BUSY = frozenset({429, 500, 502, 503, 504})
_HEAD = struct.Struct("!I")
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_BROKEN = (OSError, websocket.WebSocketException)


class Follower(Protocol):
    """Whoever wants to know what happens to a job. Called by the socket's thread: it must not wait."""

    #: The id of the last event that it has been told.
    after: str | None

    def tell(self, event_id: str, event: Event, data: bytes | None) -> None: ...

    def fail(self, error: InterlaceError) -> None: ...


class Sockets:
    """One socket, and more while more jobs are followed than one takes."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._lock = threading.Lock()
        self._another = partial(Socket, url, headers)
        self._sockets = [self._another()]

    def open(self) -> None:
        """Begin to connect, if it is not: it takes a moment that the caller may use."""
        self._sockets[0].open()

    def follow(self, job_id: str, follower: Follower) -> None:
        """Tell somebody what happened to a job behind `after`, then what happens, to its last event or to a failure.

        Of one job, one follower.
        """
        with self._lock:
            self._socket_for(job_id).follow(job_id, follower)

    def _socket_for(self, job_id: str) -> "Socket":
        """The one that follows it already, or has room for it. Called with the lock."""
        for socket in self._sockets:
            if socket.follows(job_id):
                return socket
        for socket in self._sockets:
            if socket.jobs < _MOST_JOBS:
                return socket
        self._sockets.append(self._another())
        return self._sockets[-1]

    def leave(self, job_id: str) -> None:
        for socket in list(self._sockets):
            socket.leave(job_id)

    def close(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for socket in sockets:
            socket.close()


class Socket:
    """Opened when the first job is followed, kept, and opened again where it broke while jobs are followed."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        scheme, _, rest = url.partition("://")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/stream"
        self._headers = [f"{name}: {value}" for name, value in headers.items()]
        self._lock = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._socket: Any = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def jobs(self) -> int:
        """How many it follows."""
        return len(self._followers)

    def follows(self, job_id: str) -> bool:
        return job_id in self._followers

    def open(self) -> None:
        with self._lock:
            self._start()

    def follow(self, job_id: str, follower: Follower) -> None:
        with self._lock:
            self._followers[job_id] = follower
            self._start()
            self._say(_follow(job_id, follower))

    def leave(self, job_id: str) -> None:
        with self._lock:
            if self._followers.pop(job_id, None) is not None:
                self._say({"leave": job_id})

    def close(self) -> None:
        with self._lock:
            self._closed = True
            followers, self._followers = self._followers, {}
            connection, thread = self._socket, self._thread
        for follower in followers.values():
            follower.fail(Unreachable("The client was closed before the job had ended; the job goes on."))
        if connection is not None:
            with suppress(*_BROKEN):
                connection.abort()  # wakes the thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CONNECT)

    def _start(self) -> None:
        if self._closed:
            raise Unreachable("The client is closed.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="interlace-stream", daemon=True)
            self._thread.start()

    def _say(self, word: dict[str, Any]) -> None:
        """Called with the lock. What is not said now is said when the socket is open again."""
        if self._socket is not None:
            with suppress(*_BROKEN):
                self._socket.send(json.dumps(word))

    def _run(self) -> None:
        """The thread: connect and read, until it is closed, or broken while nobody follows anything."""
        broken: float | None = None
        tries = 0
        while True:
            connected: float | None = None
            try:
                self._connect()
                connected = time.monotonic()
                self._read()
            except Refused as error:
                self._fail_all(error)
            except _BROKEN as error:
                now = time.monotonic()
                if broken is None or (connected is not None and now - connected > _STEADY):
                    broken, tries = now, 0
                if now - broken > _PATIENCE:
                    self._fail_all(Unreachable(f"{self._url} does not answer: {error or type(error).__name__}"))
            except Exception as error:  # noqa: BLE001  the thread's edge: who waits for it must hear of it
                self._fail_all(InterlaceError(f"The stream broke: {error!r}"))
            with self._lock:
                if self._socket is not None:
                    with suppress(*_BROKEN):
                        self._socket.shutdown()
                self._socket = None
                if self._closed or not self._followers:
                    self._thread = None
                    return
            time.sleep(min(0.05 * 2**tries, _LONGEST_PAUSE))
            tries = min(tries + 1, 10)

    def _connect(self) -> None:
        try:
            connection = websocket.create_connection(
                self._url, timeout=_CONNECT, header=self._headers, skip_utf8_validation=True, enable_multithread=True
            )
        except websocket.WebSocketBadStatusException as error:
            if error.status_code in _BUSY:
                raise
            raise Refused(error.status_code, f"{self._url} answered {error.status_code}.") from None
        connection.settimeout(SILENCE)
        with self._lock:
            self._socket = connection
            for job_id, follower in self._followers.items():
                self._say(_follow(job_id, follower))
            if self._closed:
                connection.shutdown()

    def _read(self) -> None:
        """Hand on what comes, until the socket breaks. Raises Refused where the server will not have us."""
        while True:
            frame = self._socket.recv()
            if not frame:
                raise websocket.WebSocketConnectionClosedException("the server closed the stream")
            data = None
            if isinstance(frame, bytes):
                (length,) = _HEAD.unpack_from(frame)
                text, data = frame[_HEAD.size : _HEAD.size + length], frame[_HEAD.size + length :]
            else:
                text = frame.encode()
            self._hand_on(json.loads(text), data)

    def _hand_on(self, head: dict[str, Any], data: bytes | None) -> None:
        if not head:
            return
        job_id = head.get("job")
        if "failed" in head:
            error = Refused(head["status"], head["failed"])
            if error.http_status in _BUSY and (job_id is None or error.http_status == 503):
                raise websocket.WebSocketException(str(error))  # to be tried again
            if job_id is None:
                raise error
            with self._lock:
                failed = self._followers.pop(job_id, None)
            if failed is not None:
                failed.fail(error)
            return
        try:
            event = _EVENT.validate_python(head["event"])
        except ValidationError:
            raise InterlaceError(f"the server sent an event that this client does not know: {head}") from None
        with self._lock:
            follower = self._followers.get(str(job_id))
            if isinstance(event, Ended):
                self._followers.pop(str(job_id), None)
        if follower is not None:
            follower.after = head["id"]
            follower.tell(head["id"], event, data)

    def _fail_all(self, error: InterlaceError) -> None:
        with self._lock:
            followers, self._followers = self._followers, {}
        for follower in followers.values():
            follower.fail(error)


def _follow(job_id: str, follower: Follower) -> dict[str, Any]:
    return {"follow": job_id, "after": follower.after}
