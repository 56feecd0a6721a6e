"""Traces: spans with times of their own, sent to an OpenTelemetry collector where one is configured.

A trace's context travels as a W3C `traceparent`: in a client's header, in the job. Spans are exported by a thread of
OpenTelemetry's SDK out of a bounded queue: a collector that is slow or away costs spans and never a job.
"""

import asyncio
import re
import threading
import time
from types import TracebackType
from typing import Any

from interlace import __version__
from interlace_state.config_file import ConfigError
from interlace_state.settings.services import TelemetryConfig

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_EXPORT_SECONDS = 5.0  # for one call of the collector
_GOODBYE_SECONDS = 2.0  # for the last spans, when the process ends


def checked(traceparent: str) -> str:
    """A traceparent as it came; empty if it is none."""
    return traceparent if _TRACEPARENT.fullmatch(traceparent) else ""


class Span:
    """A span that has begun."""

    def __init__(self, traceparent: str, span: Any = None) -> None:
        #: The context for what happens inside of it; empty where nothing is traced.
        self.traceparent = traceparent
        self._span = span

    def end(self, at: float | None = None, *, error: str = "", **attributes: str | int | float) -> None:
        """End it, at a Unix time or now; ``error`` says what went wrong."""
        if self._span is None:
            return
        self._span.set_attributes({f"interlace.{name}": value for name, value in attributes.items()})
        if error:
            self._span.set_status(_failed(error))
        self._span.end(_nanoseconds(time.time() if at is None else at))


class Tracing:
    """Makes spans. An async context manager: its end sends what is left, for two seconds at most."""

    def __init__(self, config: TelemetryConfig, service: str, instance: str = "") -> None:
        """``service`` and ``instance`` name this process to the collector. Raises ConfigError without the SDK."""
        self._provider: Any = None
        self._tracer: Any = None
        if config.endpoint is not None:
            self._provider = _provider(config.endpoint, service, instance)
            self._tracer = self._provider.get_tracer("interlace", __version__)

    def begin(self, name: str, parent: str = "", at: float | None = None, *, kind: str = "INTERNAL") -> Span:
        """Begin a span at a Unix time, or now. One without a parent is the first of a new trace."""
        if self._tracer is None:
            return Span(parent)
        start = _nanoseconds(time.time() if at is None else at)
        span = self._tracer.start_span(name, _context(parent), _kind(kind), start_time=start)
        context = span.get_span_context()
        flags = int(context.trace_flags)
        return Span(f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}", span)

    def add(self, name: str, parent: str, start: float, end: float) -> None:
        """A span that is over already."""
        self.begin(name, parent, start).end(max(start, end))

    async def __aenter__(self) -> "Tracing":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (provider := self._provider) is None:
            return
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            provider.shutdown()
            try:
                loop.call_soon_threadsafe(ended.set)
            except RuntimeError:  # nobody waited so long
                return

        # Not a thread of the loop's own, for which the process would wait.
        threading.Thread(target=end, name="last spans", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), _GOODBYE_SECONDS)
        except TimeoutError:
            return


def _provider(endpoint: str, service: str, instance: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"`telemetry.endpoint` is set, and OpenTelemetry is not installed here ({error.name}): "
            "pip install 'interlace[otel]', or leave the endpoint out."
        ) from None
    names = {"service.name": service, "service.version": __version__}
    resource = Resource.create(names | ({"service.instance.id": instance} if instance else {}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return provider


def _context(parent: str) -> Any:
    """What OpenTelemetry calls a context: that of the parent, or an empty one."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not checked(parent):
        return Context()
    _, trace_id, span_id, flags = parent.split("-")
    known = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(known), Context())


def _kind(name: str) -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind[name]


def _failed(why: str) -> Any:
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.ERROR, why)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
