"""Methods as jobs, from a notebook: run one and watch it, or start it and look later."""

import asyncio
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pydantic import ConfigDict

from interlace._followed import Followed
from interlace.methods import find
from interlace.methods.base import Params, Result
from interlace.methods.shared.display import Display
from interlace.protocol.artifact import Artifact
from interlace.protocol.errors import UnknownMethod
from interlace.protocol.event import Ended, Log, Picture, Progress, StateChanged
from interlace.protocol.job import JobState
from interlace.protocol.method import Envelope

_REFRESH = 0.5  # seconds


class AnyResult(Result):
    """The result of a method that is not installed here: its own fields are there, as JSON has them."""

    model_config = ConfigDict(extra="allow")


class RunningMethod(Followed):
    """A method's job that was posted, followed until its end. All methods may be called from any thread."""

    def result(self, timeout: float | None = None) -> Result:
        """What the method gave, as its own type, with its `envelope`.

        Of a cancelled job what it had by then. Raises JobFailed for a job that came to nothing, and what `wait` raises.
        """
        return self._loaded(self.wait(timeout))

    async def aresult(self) -> Result:
        """As `result`, on an event loop."""
        await self._until(self._is_over)
        return await asyncio.to_thread(self.result)

    def envelope(self, timeout: float | None = None) -> Envelope:
        """The result as it is stored, with where it comes from, its artifacts and what it cost. Raises as `result`."""
        return self._envelope(self.wait(timeout))

    def watch(self, title: str = "") -> Result:
        """As `result`, with a progress bar until then, which also shows what the job prints; in a notebook also the
        newest picture of what it has by then."""
        bar = import_module("tqdm.auto").tqdm(desc=title or self.id[:8], leave=False)
        display = Display()
        try:
            for event in self.events(_REFRESH):
                if isinstance(event, Progress):
                    bar.total = event.of
                    bar.n = event.step
                    bar.set_postfix({name: value for name, value in event.metrics.items() if value is not None})
                elif isinstance(event, StateChanged):
                    bar.set_postfix_str(event.text.rstrip("."))
                elif isinstance(event, Picture) and event.data is not None:
                    display.show(event.data)
                elif isinstance(event, Log):
                    bar.write(event.text)
                bar.refresh()
        finally:
            bar.close()
        return self.result()

    def _envelope(self, end: Ended) -> Envelope:
        if end.state is not JobState.COMPLETED and end.result is None:
            raise self._failure(end.text or f"The job was {end.state}.")
        return Envelope.model_validate_json(self._bytes())

    def _loaded(self, end: Ended) -> Result:
        envelope = self._envelope(end)
        try:
            kind = find(envelope.provenance.method).result
        except UnknownMethod:
            kind = AnyResult
        found = kind.model_validate(envelope.result)
        found.in_envelope(envelope)
        return found


def request(
    method: str,
    model: str,
    params: Mapping[str, Any] | Params | None,
    inputs: Mapping[str, Any] | None,
    edits: Sequence[Artifact | str],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of `POST /v1/jobs`; what is None is left out."""
    said = params.model_dump(mode="json", exclude_unset=True) if isinstance(params, Params) else params
    body: dict[str, Any] = {
        "method": method,
        "model": model,
        "params": None if said is None else dict(said),
        "inputs": None if inputs is None else {name: _named(value) for name, value in inputs.items()},
        "edits": named(edits) or None,
        **more,
    }
    return {name: value for name, value in body.items() if value is not None}


def named(artifacts: Sequence[Artifact | str]) -> list[str]:
    """What a request calls artifacts."""
    return [_named(one) for one in artifacts]


def _named(value: Any) -> Any:
    return value.ref if isinstance(value, Artifact) else value
