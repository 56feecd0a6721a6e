"""A client for what stock nnsight has no word for: jobs, their events and logs, and an operator's switches."""

import ipaddress
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from interlace import __version__
from interlace.protocol import event as words
from interlace.protocol.errors import InterlaceError
from interlace.protocol.event import Ended, Event, Log
from interlace.protocol.jobs import JobPage, JobView

_CONNECT = 10.0  # seconds
_ANSWER = 60.0  # seconds
#: A stream that is silent for so long is dead: the server says something every 15 seconds.
_SILENCE = 45.0
_PATIENCE = 120.0  # seconds that a stream may be gone before it is given up
_LONGEST_PAUSE = 5.0  # seconds between two tries
_LONGEST_LINE = 16 << 20  # bytes of one event; a server that sends more is none of ours
_BUSY = frozenset({429, 502, 503, 504})

_View = TypeVar("_View", bound=BaseModel)


class Refused(InterlaceError):
    """The server refused."""

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        #: The HTTP status: 401 no key that works, 403 not for this key, 404 unknown or another's, 409, 422, 429, 503.
        self.http_status = status
        #: Seconds, where the server said when to try again.
        self.retry_after = None if retry_after is None else round(retry_after)


class Unreachable(InterlaceError):
    """Nobody answers there."""


class Client:
    """One server, as the holder of one key sees it. Blocking; use it as a context manager, or `close` it.

    ``url`` and ``api_key`` default to the variables that stock nnsight reads, NDIF_HOST and NDIF_API_KEY. Every method
    raises Refused, or Unreachable.
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        url = url or os.environ.get("NDIF_HOST")
        api_key = api_key or os.environ.get("NDIF_API_KEY")
        parts = urlsplit(url or "")
        if url is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The server's URL is {url!r}; expected Client('http://HOST:8000') or that in NDIF_HOST.")
        headers = {"User-Agent": f"interlace/{__version__}"} | ({"ndif-api-key": api_key} if api_key else {})
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(_ANSWER, connect=_CONNECT),
            trust_env=not _is_loopback(parts.hostname),  # no proxy is asked on the way to our own machine
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def jobs(
        self, *, state: str | None = None, model: str | None = None, tenant: str | None = None
    ) -> Iterator[JobView]:
        """Own jobs, the newest first, page by page as they are asked for; with an admin's key, those of all tenants.

        ``model`` is a repo id or a slug; ``tenant`` is for admins.
        """
        asked = {"state": state, "model": model, "tenant": tenant}
        given = {name: value for name, value in asked.items() if value is not None}
        cursor: str | None = None
        while True:
            page = _read(JobPage, self._ask("GET", "/v1/jobs", {**given, **({"cursor": cursor} if cursor else {})}))
            yield from page.jobs
            if (cursor := page.next) is None:
                return

    def job(self, job_id: str) -> JobView:
        """One job as it is now."""
        return _read(JobView, self._ask("GET", _path("/v1/jobs", job_id)))

    def cancel(self, job_id: str) -> JobView:
        """Stop a job that waits or runs, and show it; one that has ended stays as it is, and is shown."""
        return _read(JobView, self._ask("DELETE", _path("/v1/jobs", job_id), {"forget": "false"}))

    def delete(self, job_id: str) -> JobView | None:
        """Stop a job that waits or runs, and show it; of one that has ended, remove result, events and record: None."""
        answer = self._ask("DELETE", _path("/v1/jobs", job_id))
        return None if answer.status_code == 204 else _read(JobView, answer)

    def events(self, job_id: str, after: str | None = None, follow: bool = True) -> Iterator[tuple[str, Event]]:
        """(event id, event) from behind ``after``, each once, until the job's last, or until now without ``follow``.

        A connection that breaks is made again, and goes on behind the last event that came.
        """
        tries = 0
        broken: float | None = None
        while True:
            pause = min(0.1 * 2**tries, _LONGEST_PAUSE)
            tries = min(tries + 1, 10)
            try:
                with self._stream(job_id, after, follow) as events:
                    broken = None
                    for event_id, event in events:
                        after, tries = event_id, 0
                        yield event_id, event
                        if isinstance(event, Ended):
                            return
                if not follow:
                    return
            except (httpx.HTTPError, Refused) as error:
                if isinstance(error, Refused):
                    if error.http_status not in _BUSY:
                        raise
                    pause = error.retry_after or pause
                broken = broken or time.monotonic()
                if time.monotonic() - broken > _PATIENCE:
                    raise self._unreachable(error) from None
            time.sleep(pause)

    def logs(self, job_id: str, follow: bool = True) -> Iterator[str]:
        """The lines that a job printed, and with ``follow`` those that it prints until it ends."""
        return (event.text for _, event in self.events(job_id, follow=follow) if isinstance(event, Log))

    def download(self, job_id: str, path: Path | str) -> int:
        """Fetch a completed job's result into a file, and return its bytes. Call it again to go on after it broke off.

        It is what torch.save wrote of the saved values, as one zstd frame if the request was compressed, as those of
        stock nnsight are: ``torch.load(io.BytesIO(zstandard.decompress(path.read_bytes())))``.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.{job_id}.part")
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            with self._http.stream("GET", _path("/v1/jobs", job_id) + "/result", headers=headers) as answer:
                if answer.status_code == 416 and have:  # all of it is there
                    size = answer.headers.get("content-range", "").rpartition("/")[2]
                    if size == str(have):
                        part.replace(path)
                        return have
                if answer.status_code not in (200, 206):
                    answer.read()
                    raise _refusal(answer)
                with part.open("ab" if answer.status_code == 206 else "wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        part.replace(path)
        return path.stat().st_size

    def whoami(self) -> dict[str, Any]:
        """Whose key this is: `email` is the tenant, None where no key is asked for."""
        return self._object("GET", "/whoami")

    def pause(self, model: str) -> dict[str, Any]:
        """Start no more jobs of a model (repo id or slug); they wait. For admins, as what follows."""
        return self._object("POST", _path("/v1/models", model) + "/pause")

    def resume(self, model: str) -> dict[str, Any]:
        return self._object("POST", _path("/v1/models", model) + "/resume")

    def drain(self, replica: str) -> dict[str, Any]:
        """Give a replica no more jobs."""
        return self._object("POST", _path("/v1/replicas", replica) + "/drain")

    def undrain(self, replica: str) -> dict[str, Any]:
        return self._object("DELETE", _path("/v1/replicas", replica) + "/drain")

    def tenant(self, tenant: str) -> dict[str, Any]:
        """A tenant's `weight`, and the `limits` that were set at run time."""
        return self._object("GET", _path("/v1/tenants", tenant))

    def set_tenant(
        self, tenant: str, *, weight: float | None = None, limits: Mapping[str, float | None] | None = None
    ) -> dict[str, Any]:
        """Set a tenant's weight, its limits (all that are set at run time: `{}` takes them back), or both."""
        changes = {"weight": weight, "limits": None if limits is None else dict(limits)}
        given = {name: value for name, value in changes.items() if value is not None}
        return self._object("PUT", _path("/v1/tenants", tenant), given)

    @contextmanager
    def _stream(self, job_id: str, after: str | None, follow: bool) -> Iterator[Iterator[tuple[str, Event]]]:
        """One connection and its events. Raises httpx.HTTPError when it breaks, Refused."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(_SILENCE, connect=_CONNECT)
        path, asked = _path("/v1/jobs", job_id) + "/events", {"follow": "true" if follow else "false"}
        with self._http.stream("GET", path, params=asked, headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _refusal(answer)
            yield _events(_lines(answer.iter_bytes()))

    def _object(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self._ask(method, path, body=body).json()
        return found

    def _ask(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, params=query, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if not answer.is_success:
            raise _refusal(answer)
        return answer

    def _unreachable(self, error: Exception) -> InterlaceError:
        if isinstance(error, Refused):
            return error
        return Unreachable(f"{self.url} does not answer: {error or type(error).__name__}")


def _events(lines: Iterable[str]) -> Iterator[tuple[str, Event]]:
    """Read what our server sends of server-sent events: `id`, then `data` in one line, then an empty line."""
    event_id, data = "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            data = value
        elif not line and data:
            yield event_id, _decoded(data)
            data = ""


def _decoded(data: str) -> Event:
    try:
        return words.decode(data)
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


def _refusal(answer: httpx.Response) -> Refused:
    try:
        sentence = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        sentence = f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}"
    after = answer.headers.get("retry-after", "")
    return Refused(answer.status_code, sentence, float(after) if after.isdecimal() else None)


def _read(kind: type[_View], answer: httpx.Response) -> _View:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise InterlaceError(f"{answer.request.url} did not answer as Interlace does: {error}") from None


def _path(root: str, name: str) -> str:
    """A resource's path; `/` is one of the characters that its name may hold."""
    return f"{root}/{quote(name, safe='')}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
