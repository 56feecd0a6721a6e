"""A client for what stock nnsight has no word for: kept connections, streamed values, jobs, an operator's switches."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from interlace._artifacts import Artifacts
from interlace._errors import JobFailed
from interlace._http import Http, path, read
from interlace._jobs import RunningJob, Value
from interlace._lake import Lake
from interlace._methods import RunningMethod, named, request
from interlace._stream import Sockets
from interlace.methods.base import Estimate, Params, Result
from interlace.methods.views import MethodList, MethodSummary, MethodView
from interlace.protocol import event as words
from interlace.protocol.artifact import Artifact
from interlace.protocol.event import Ended, Event, Log
from interlace.protocol.hosting import ModelEvent, ModelList, ModelView
from interlace.protocol.jobs import JobPage, JobView

if TYPE_CHECKING:
    from interlace._backend import Backend


def connect(url: str | None = None, api_key: str | None = None) -> "Client":
    """A client of a server: `with interlace.connect("http://HOST:8000", KEY) as client: ...`."""
    return Client(url, api_key)


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
            raise ValueError(
                f"The server's URL is {url!r}; expected interlace.connect('http://HOST:8000'), or that URL in the "
                "environment variable NDIF_HOST."
            )
        self.url = url.rstrip("/")
        self._http = Http(self.url, api_key)
        #: Adapters that are kept on the server.
        self.artifacts = Artifacts(self._http)
        #: All that the server knows of models and of what was made.
        self.lake = Lake(self._http, self.artifacts, self)
        self._sockets = Sockets(self.url, self._http.headers)
        self._jobs: WeakValueDictionary[str, RunningJob] = WeakValueDictionary()
        self._method_jobs: WeakValueDictionary[str, RunningMethod] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<interlace.Client of {self.url}>"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections. Jobs go on."""
        self._sockets.close()
        self._http.close()

    def on(
        self,
        model: Any,
        *,
        blocking: bool = True,
        on_value: Callable[[Value], object] | None = None,
        stream: bool | None = None,
        verbose: bool = False,
        lora: Mapping[str, float | Mapping[str, float]] | None = None,
        edits: Sequence[Artifact | str] = (),
    ) -> "Backend":
        """A backend for `model.trace(..., backend=client.on(model))`, `model.session(...)` and `model.generate(...)`.

        Blocking, it waits as `remote=True` does, and calls ``on_value`` with each value that comes meanwhile. Otherwise
        its `job` is the `RunningJob`, once the block is over. ``stream``: whether what inner traces and steps save
        shall come as soon as they are over; by default if it is not blocking or there is a callback. What
        `interlace.stream` hands over always comes. Errors are nnsight's `RemoteError`.

        ``lora``: what a diffusion pipeline shall have loaded, as weights by adapter (`Artifact.ref`, a hub id, a path
        of the server); in place of a weight also `{"weight": 1.0, "t_max": 800}`: on at those timesteps only.
        ``edits``: artifacts of the kinds `edit` and `peft` that are on for this request, as additions that touch no
        weight.
        """
        # nnsight, and with it torch, is for those who trace.
        backend: Backend = import_module("interlace._backend").Backend(
            self,
            model,
            blocking=blocking,
            on_value=on_value,
            stream=stream,
            verbose=verbose,
            lora=lora,
            edits=named(edits),
        )
        return backend

    def installed(self) -> AbstractContextManager[None]:
        """Have `remote=True` of every model go through this client while the block runs."""
        context: AbstractContextManager[None] = import_module("interlace._backend").installed(self)
        return context

    def open(self) -> None:
        """Begin to connect, where nothing is connected yet; the first job does so otherwise."""
        self._sockets.open()

    def submit(
        self, envelope: str, blob: bytes, headers: Mapping[str, str], failure: type[JobFailed] = JobFailed
    ) -> RunningJob:
        """Post a request as nnsight writes it, and follow the job. Sent again where a connection breaks, it is one."""
        return self.follow(self._http.submit(envelope, blob, headers), failure)

    def follow(self, job_id: str, failure: type[JobFailed] = JobFailed) -> RunningJob:
        """A job of one's own, however it was posted, from its first event on; the same object if it is at hand."""
        job = self._jobs.get(job_id)
        if job is None or job.lost:
            job = self._jobs[job_id] = RunningJob(self, job_id, failure)
        if job.ended is None:
            self._sockets.follow(job_id, job)
        return job

    def run(
        self,
        method: str,
        *,
        model: str,
        params: Mapping[str, Any] | Params | None = None,
        inputs: Mapping[str, Any] | None = None,
        edits: Sequence[Artifact | str] = (),
        seed: int | None = None,
        follow: bool = True,
    ) -> Result:
        """Run a method next to a hosted model and wait for what it gives, with a progress bar unless ``follow`` is off.

        As `submit_method`. An interrupt (Ctrl-C) cancels it; a second one stops waiting for what it has by then.
        """
        job = self.submit_method(method, model=model, params=params, inputs=inputs, edits=edits, seed=seed)
        try:
            return job.watch(method) if follow else job.result()
        except KeyboardInterrupt:
            job.cancel()
            return job.result()
        finally:
            job.leave()

    def submit_method(
        self,
        method: str,
        *,
        model: str,
        params: Mapping[str, Any] | Params | None = None,
        inputs: Mapping[str, Any] | None = None,
        edits: Sequence[Artifact | str] = (),
        seed: int | None = None,
        resume: str | None = None,
    ) -> RunningMethod:
        """Post a method's job and follow it: ``client.submit_method("lens.logit", model=REPO, params={...})``.

        ``inputs`` are more of ``params``, whose values may be artifacts. ``edits``: artifacts that are on meanwhile.
        ``resume``: a job that was cancelled or has failed, whose last checkpoint this one goes on from.
        """
        more = {"seed": seed, "resume": resume}
        answer = self._http.submit_method(request(method, model, params, inputs, edits, more))
        return self.follow_method(read(JobView, answer).id)

    def estimate(
        self,
        method: str,
        *,
        model: str,
        params: Mapping[str, Any] | Params | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Estimate:
        """What a run would cost. Refused where that is more than one may use."""
        body = request(method, model, params, inputs, (), {"dry_run": True})
        return read(Estimate, self._http.submit_method(body))

    def methods(self) -> list[MethodSummary]:
        """The methods that the server has."""
        return read(MethodList, self._http.ask("GET", "/v1/methods")).methods

    def method(self, name: str) -> MethodView:
        """One method, with what it takes and gives as JSON schemas."""
        return read(MethodView, self._http.ask("GET", path("/v1/methods", name)))

    def follow_method(self, job_id: str) -> RunningMethod:
        """A method's job of one's own, from its first event on; the same object if it is at hand."""
        job = self._method_jobs.get(job_id)
        if job is None or job.lost:
            job = self._method_jobs[job_id] = RunningMethod(self, job_id)
        if job.ended is None:
            self._sockets.follow(job_id, job)
        return job

    def leave(self, job_id: str) -> None:
        """Follow a job no more. It goes on."""
        self._sockets.leave(job_id)

    def fetch(self, job_id: str, what: str) -> bytes | bytearray:
        """The bytes of a job's `result`, or of one of its `values/NUMBER`."""
        return self._http.fetch(f"{path('/v1/jobs', job_id)}/{what}")

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
            page = read(JobPage, self._http.ask("GET", "/v1/jobs", {**given, **({"cursor": cursor} if cursor else {})}))
            yield from page.jobs
            if (cursor := page.next) is None:
                return

    def job(self, job_id: str) -> JobView:
        """One job as it is now."""
        return read(JobView, self._http.ask("GET", path("/v1/jobs", job_id)))

    def cancel(self, job_id: str) -> JobView:
        """Stop a job that waits or runs, and show it; one that has ended stays as it is, and is shown."""
        return read(JobView, self._http.ask("DELETE", path("/v1/jobs", job_id), {"forget": "false"}))

    def delete(self, job_id: str) -> JobView | None:
        """Stop a job that waits or runs, and show it; of one that has ended, remove result, events and record: None."""
        answer = self._http.ask("DELETE", path("/v1/jobs", job_id))
        return None if answer.status_code == 204 else read(JobView, answer)

    def events(self, job_id: str, after: str | None = None, follow: bool = True) -> Iterator[tuple[str, Event]]:
        """(event id, event) from behind ``after``, each once, until the job's last, or until now without ``follow``.

        A connection that breaks is made again, and goes on behind the last event that came.
        """
        at, asked = path("/v1/jobs", job_id) + "/events", {"follow": "true" if follow else "false"}
        return self._http.follow(at, words.decode, asked, after, lambda event: isinstance(event, Ended))

    def logs(self, job_id: str, follow: bool = True) -> Iterator[str]:
        """The lines that a job printed, and with ``follow`` those that it prints until it ends."""
        return (event.text for _, event in self.events(job_id, follow=follow) if isinstance(event, Log))

    def download(self, job_id: str, target: Path | str) -> int:
        """Fetch a completed job's result into a file, and return its bytes. Call it again to go on after it broke off.

        It is what torch.save wrote of the saved values, as one zstd frame if the request was compressed, as those of
        stock nnsight are: ``torch.load(io.BytesIO(zstandard.decompress(target.read_bytes())))``.
        """
        target = Path(target)
        part = target.with_name(f"{target.name}.{job_id}.part")
        return self._http.download(path("/v1/jobs", job_id) + "/result", target, part)

    def whoami(self) -> dict[str, Any]:
        """Whose key this is: `email` is the tenant, None where no key is asked for."""
        return self._object("GET", "/whoami")

    def models(self) -> list[ModelView]:
        """The hosted models that the key reaches, and where each stands."""
        return read(ModelList, self._http.ask("GET", "/v1/models")).models

    def model(self, model: str) -> ModelView:
        """One hosted model (repo id or slug), with what happened to it lately."""
        return read(ModelView, self._http.ask("GET", path("/v1/models", model)))

    def model_events(
        self, model: str | None = None, after: str | None = None, follow: bool = True
    ) -> Iterator[tuple[str, ModelEvent]]:
        """(event id, event) of what happened to the models that the key reaches, or to one, from behind ``after``.

        The server keeps the last 2,000. With ``follow`` it goes on for ever, over connections that break.
        """
        asked = {"follow": "true" if follow else "false"} | ({} if model is None else {"model": model})
        decode = ModelEvent.model_validate_json
        return self._http.follow("/v1/models/events", decode, asked, after, lambda _: False)

    def deploy(self, source: str, **settings: Any) -> ModelView:
        """Host a model; ``settings`` are those of the configuration's `models`. For admins, as what follows."""
        return read(ModelView, self._http.ask("POST", "/v1/models", body={"source": source, **settings}))

    def scale(self, model: str, **changes: Any) -> ModelView:
        """Change `replicas` or `autoscale`, `idle_seconds`, `pin` of a hosted model."""
        return read(ModelView, self._http.ask("PATCH", path("/v1/models", model), body=changes))

    def evict(self, model: str, *, forget: bool = False) -> ModelView:
        """Take a model out of memory until its next job, or with ``forget`` off the server."""
        asked = {"forget": "true" if forget else "false"}
        return read(ModelView, self._http.ask("DELETE", path("/v1/models", model), asked))

    def pause(self, model: str) -> dict[str, Any]:
        """Start no more jobs of a model (repo id or slug); they wait. For admins, as what follows."""
        return self._object("POST", path("/v1/models", model) + "/pause")

    def resume(self, model: str) -> dict[str, Any]:
        return self._object("POST", path("/v1/models", model) + "/resume")

    def drain(self, replica: str) -> dict[str, Any]:
        """Give a replica no more jobs."""
        return self._object("POST", path("/v1/replicas", replica) + "/drain")

    def undrain(self, replica: str) -> dict[str, Any]:
        return self._object("DELETE", path("/v1/replicas", replica) + "/drain")

    def tenant(self, tenant: str) -> dict[str, Any]:
        """A tenant's `weight`, and the `limits` that were set at run time."""
        return self._object("GET", path("/v1/tenants", tenant))

    def set_tenant(
        self, tenant: str, *, weight: float | None = None, limits: Mapping[str, float | None] | None = None
    ) -> dict[str, Any]:
        """Set a tenant's weight, its limits (all that are set at run time: `{}` takes them back), or both."""
        changes = {"weight": weight, "limits": None if limits is None else dict(limits)}
        given = {name: value for name, value in changes.items() if value is not None}
        return self._object("PUT", path("/v1/tenants", tenant), given)

    def _object(self, method: str, at: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self._http.ask(method, at, body=body).json()
        return found
