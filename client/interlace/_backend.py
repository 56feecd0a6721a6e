"""nnsight's remote backend over a client's kept connections: the only module here that needs nnsight."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from nnsight.intervention.backends.remote import _NNSIGHT_VERSION, RemoteBackend, RemoteError
from nnsight.modeling.mixins.remotable import Remotable
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from interlace._env import of_lora
from interlace._errors import JobFailed
from interlace._jobs import RunningJob, Value
from interlace._link import is_fast
from interlace._payload import serialize
from interlace.protocol.errors import InterlaceError
from interlace.protocol.event import Ended, Event, Log, Picture, Progress, Saved, StateChanged
from interlace.protocol.job import JobState

if TYPE_CHECKING:
    from interlace._client import Client

_REFRESH = 0.1  # seconds between two pictures of the spinner
_PLACE_PERIOD = 2.0  # seconds between two looks at where a waiting job stands
_STATUS = {
    JobState.RECEIVED: Status.RECEIVED,
    JobState.QUEUED: Status.QUEUED,
    JobState.LEASED: Status.DISPATCHED,
    JobState.RUNNING: Status.RUNNING,
    JobState.COMPLETED: Status.COMPLETED,
    JobState.ERROR: Status.ERROR,
    JobState.CANCELLED: Status.ERROR,
}


class RemoteJobFailed(RemoteError, JobFailed):  # type: ignore[misc]
    """The job came to nothing, or was not taken in."""


class Backend(RemoteBackend):  # type: ignore[misc]
    """Runs a traced block as a job of a client. `job` is the last that it posted."""

    def __init__(
        self,
        client: "Client",
        model: Any,
        *,
        blocking: bool,
        on_value: Callable[[Value], object] | None,
        stream: bool | None,
        verbose: bool,
        lora: Mapping[str, float | Mapping[str, float]] | None = None,
        edits: Sequence[str] = (),
    ) -> None:
        env = dict(model._remoteable_get_env())
        if lora:
            env["lora"] = [*env.get("lora", ()), *(of_lora(name, said) for name, said in lora.items())]
        if edits:
            env["edits"] = [*env.get("edits", ()), *edits]
        super().__init__(model.to_model_key(), host=client.url, env=env, blocking=blocking, verbose=verbose)
        self.job: RunningJob | None = None
        self._client = client
        self._on_value = on_value
        self._streams = stream if stream is not None else on_value is not None or not blocking

    def __call__(self, tracer: Any = None) -> Any:
        """Post the block; wait for its saves, and put them where it stands. Non-blocking: see `poll`."""
        self.meta: dict[str, Any] | None = None
        if tracer is None:
            return self.poll()
        job = self.submit(tracer)
        if not self.blocking:
            return None
        try:
            result = self._wait(job)
        except KeyboardInterrupt:
            with suppress(InterlaceError):
                job.cancel()
            raise
        finally:
            job.leave()
        self._push(result, tracer)
        return result

    def submit(self, tracer: Any) -> RunningJob:
        """Post the block. Raises RemoteJobFailed where it is not taken in."""
        headers = {"nnsight-version": _NNSIGHT_VERSION, "python-version": sys.version}
        if self._streams:
            headers["interlace-stream"] = "saves"
        if is_fast(self._client.url):
            headers["interlace-packing"] = "raw"
        try:
            self._client.open()  # meanwhile
            blob = serialize(tracer, self.compress)
            request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
            self.job = job = self._client.submit(request.metadata(), blob, headers, RemoteJobFailed)
        except InterlaceError as error:
            raise RemoteJobFailed(f"Failed to send request: {error}") from error
        self.job_id = job.id
        if self._on_value is not None and not self.blocking:
            job.on_value(self._on_value)
        return job

    def poll(self, tracer: Any = None) -> dict[str, Any] | None:
        """The saved values of a job that was posted without waiting; None while it has not ended."""
        if self.job is None:
            raise RemoteJobFailed("There is no job yet: the block has not been posted.")
        end = self.job.ended
        if end is None:
            return None
        self._show(end)
        return self.job.result()

    def _wait(self, job: RunningJob) -> dict[str, Any]:
        """Show what happens until the job has ended; its saved values."""
        looked = time.monotonic()
        try:
            for event in job.events(_REFRESH if self.display.enabled else None):
                if event is not None:
                    self._show(event)
                elif job.state is JobState.QUEUED and time.monotonic() - looked > _PLACE_PERIOD:
                    looked = time.monotonic()
                    self._show_place(job)
                else:
                    self.display.refresh()
                if isinstance(event, Saved) and self._on_value is not None and (value := job.take()) is not None:
                    self._on_value(value)
            return job.result()
        except InterlaceError as error:
            raise error if isinstance(error, RemoteError) else RemoteJobFailed(str(error)) from error

    def _show_place(self, job: RunningJob) -> None:
        """Say where the job stands in the queue; its events tell when it leaves it."""
        view = self._client.job(job.id)
        if view.place is not None:
            self.display.update(ResponseModel(id=job.id, status=Status.QUEUED, description=view.text))

    def _show(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.meta = event.cost.model_dump() | {"max_mem_by_gpu": {}, "max_mem_pct_by_gpu": {}}
        if self.display.enabled and (update := _update(self.job_id, event)) is not None:
            self.display.update(update)


def _update(job_id: str, event: Event) -> ResponseModel | None:
    """An event in nnsight's words; None for what it has none for."""
    if isinstance(event, Saved | Picture):
        return None
    if isinstance(event, Log):
        return ResponseModel(id=job_id, status=Status.LOG, description=event.text)
    if isinstance(event, Progress):
        return ResponseModel(id=job_id, status=Status.RUNNING, description=event.sentence)
    status = _STATUS[event.state]
    if isinstance(event, StateChanged) and event.state is JobState.QUEUED and not event.model_ready:
        status = Status.DEPLOYING
    return ResponseModel(id=job_id, status=status, description=event.text)


@contextmanager
def installed(client: "Client") -> Iterator[None]:
    """Have `remote=True` of every model go through a client while the block runs."""
    former = Remotable._remote_backend

    def backend(model: Any, remote: Any, blocking: bool, job_id: str | None, verbose: bool) -> Any:
        if remote is not True or job_id is not None:
            return former(model, remote, blocking, job_id, verbose)
        return client.on(model, blocking=blocking, verbose=verbose)

    Remotable._remote_backend = backend
    try:
        yield
    finally:
        Remotable._remote_backend = former
