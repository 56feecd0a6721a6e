"""HTTP to one server, over connections that are kept, and the errors that it answers with as ours."""

import ipaddress
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from interlace import __version__, _link
from interlace._errors import Refused, Unreachable
from interlace.protocol.errors import InterlaceError, InvalidRequest

_CONNECT = 10.0  # seconds
_ANSWER = 600.0  # seconds
#: A stream that is silent for so long is dead: the server says something every 15 seconds.
SILENCE = 45.0
_PATIENCE = 30.0  # seconds that a request is repeated whose connection broke
_LONG_PATIENCE = 120.0  # seconds that a stream may be gone before it is given up
_PAUSE = 0.2  # seconds
_LONGEST_PAUSE = 5.0  # seconds between two tries of a stream
_BUSY = frozenset({429, 502, 503, 504})
_LONGEST_LINE = 16 << 20  # bytes of one event; a server that sends more is none of ours

_View = TypeVar("_View", bound=BaseModel)
_Event = TypeVar("_Event")


class Http:
    """One server's HTTP, with one key. Raises Refused and Unreachable."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url
        self.headers = {"User-Agent": f"interlace/{__version__}"} | ({"ndif-api-key": api_key} if api_key else {})
        self._http = httpx.Client(
            base_url=url,
            headers=self.headers,
            timeout=httpx.Timeout(_ANSWER, connect=_CONNECT),
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # no proxy on the way to our own machine
            verify=url.startswith("https:"),  # what that needs takes 20 ms to load
        )

    def close(self) -> None:
        self._http.close()

    def ask(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, params=query, json=body)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None
        if not answer.is_success:
            raise refusal(answer)
        return answer

    def submit(self, envelope: str, blob: bytes, headers: Mapping[str, str]) -> str:
        """Post a job and return its id. A connection that breaks is made again: the same request is the same job."""
        files = {"blob": ("request", blob, "application/octet-stream")}
        return str(self._insist("/request", headers, data={"data": envelope}, files=files).json()["id"])

    def submit_method(self, body: Mapping[str, Any]) -> httpx.Response:
        """Post a method's request, in the same way."""
        return self._insist("/v1/jobs", {}, json=body)

    def _insist(self, path: str, headers: Mapping[str, str], **body: Any) -> httpx.Response:
        headers = {**headers, "Idempotency-Key": uuid.uuid4().hex}
        until, broke = time.monotonic() + _PATIENCE, False
        while True:
            try:
                answer = self._http.post(path, headers=headers, **body)
            except httpx.TransportError as error:
                # Who does not answer at all is told so at once.
                if time.monotonic() > until or (isinstance(error, httpx.ConnectError) and not broke):
                    raise self.unreachable(error) from None
                broke = True
                time.sleep(_PAUSE)
                continue
            if not answer.is_success:
                raise refusal(answer)
            return answer

    def post(
        self, path: str, fields: Mapping[str, str], files: Sequence[tuple[str, tuple[str, BinaryIO]]]
    ) -> httpx.Response:
        """Post a form with files, which are read as they are sent."""
        try:
            answer = self._http.post(path, data=fields, files=files)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None
        if not answer.is_success:
            raise refusal(answer)
        return answer

    def fetch(self, url: str) -> bytearray:
        """Bytes, whole, in memory that is taken once. A download that breaks goes on where it was."""
        found, filled, tag = bytearray(), 0, ""
        until = time.monotonic() + _PATIENCE
        while True:
            headers = {"Range": f"bytes={filled}-", "If-Range": tag} if filled else {}
            asked, came = time.monotonic(), 0
            try:
                with self._http.stream("GET", url, headers=headers) as answer:
                    if answer.status_code not in (200, 206):
                        answer.read()
                        raise refusal(answer)
                    if answer.status_code == 200:
                        found, filled = bytearray(int(answer.headers.get("content-length", 0))), 0
                    tag = answer.headers.get("etag", "")
                    for piece in answer.iter_raw():
                        found[filled : filled + len(piece)] = piece
                        filled, came = filled + len(piece), came + len(piece)
                        until = time.monotonic() + _PATIENCE
                _link.downloaded(self.url, came, time.monotonic() - asked)
                return found
            except httpx.TransportError as error:
                if time.monotonic() > until:
                    raise self.unreachable(error) from None
                time.sleep(_PAUSE)

    def follow(
        self,
        at: str,
        decode: Callable[[str], _Event],
        query: Mapping[str, str],
        after: str | None,
        is_last: Callable[[_Event], bool],
    ) -> Iterator[tuple[str, _Event]]:
        """(event id, event) of server-sent events behind ``after``, each once, to the last one.

        A connection that breaks is made again, and goes on behind the last event that came; so does one that ends, but
        where ``query`` has `follow` "false".
        """
        tries = 0
        broken: float | None = None
        while True:
            pause = min(0.1 * 2**tries, _LONGEST_PAUSE)
            tries = min(tries + 1, 10)
            try:
                with self._events(at, query, after) as lines:
                    broken = None
                    for event_id, data in lines:
                        event = _decoded(data, decode)
                        after, tries = event_id, 0
                        yield event_id, event
                        if is_last(event):
                            return
                if query.get("follow") == "false":
                    return
            except (httpx.HTTPError, Refused) as error:
                if isinstance(error, Refused):
                    if error.http_status not in _BUSY:
                        raise
                    pause = error.retry_after or pause
                broken = broken or time.monotonic()
                if time.monotonic() - broken > _LONG_PATIENCE:
                    raise self.unreachable(error) from None
            time.sleep(pause)

    @contextmanager
    def _events(self, at: str, query: Mapping[str, str], after: str | None) -> Iterator[Iterator[tuple[str, str]]]:
        """One connection and its events. Raises httpx.HTTPError when it breaks, Refused."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(SILENCE, connect=_CONNECT)
        with self._http.stream("GET", at, params=query, headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                answer.read()
                raise refusal(answer)
            yield _events(_lines(answer.iter_bytes()))

    def download(self, url: str, target: Path, part: Path) -> int:
        """Fetch bytes into a file, and return how many. Called again, it goes on after it broke off in ``part``."""
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            with self._http.stream("GET", url, headers=headers) as answer:
                if answer.status_code == 416 and have:  # all of it is there
                    size = answer.headers.get("content-range", "").rpartition("/")[2]
                    if size == str(have):
                        part.replace(target)
                        return have
                if answer.status_code not in (200, 206):
                    answer.read()
                    raise refusal(answer)
                with part.open("ab" if answer.status_code == 206 else "wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None
        part.replace(target)
        return target.stat().st_size

    def unreachable(self, error: Exception) -> InterlaceError:
        if isinstance(error, Refused):
            return error
        return Unreachable(f"{self.url} does not answer: {error or type(error).__name__}")


def _events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Read what our server sends of server-sent events: `id`, then `data` in one line, then an empty line."""
    event_id, data = "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            data = value
        elif not line and data:
            yield event_id, data
            data = ""


def _decoded(data: str, decode: Callable[[str], _Event]) -> _Event:
    try:
        return decode(data)
    except ValidationError:
        raise InterlaceError(f"The server sent an event that this client does not know: {data[:200]}") from None


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, of which text may hold any character but a line feed: `str.splitlines` would cut at others."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode()
        if len(rest) > _LONGEST_LINE:
            raise InterlaceError(f"The server sent an event of over {_LONGEST_LINE:,} bytes.")


def refusal(answer: httpx.Response) -> Refused:
    try:
        sentence = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        sentence = f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}"
    after = answer.headers.get("retry-after", "")
    return Refused(answer.status_code, sentence, float(after) if after.isdecimal() else None)


def read(kind: type[_View], answer: httpx.Response) -> _View:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise InterlaceError(f"{answer.request.url} did not answer as Interlace does: {error}") from None


def path(root: str, name: str) -> str:
    """A resource's path; `/` is one of the characters that its name may hold. Raises InvalidRequest."""
    if name in ("", ".", ".."):  # of which a URL would become another one
        raise InvalidRequest(f"{name!r} names nothing below {root}; expected an id or a name.")
    return f"{root}/{quote(name, safe='')}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
