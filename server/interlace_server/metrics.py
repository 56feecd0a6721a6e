"""What a gateway measures: the name of every metric of its own, and what it reads from Redis when it is asked.

Labels have few values: hosted models, templates of routes, statuses. Never a job, an address or a tenant.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from interlace import __version__
from interlace_state.files import Piece
from interlace_state.metrics import Snapshot
from interlace_state.models import HostedModel, ModelState
from interlace_state.store import State

disable_created_metrics()  # type: ignore[no-untyped-call]

#: Prometheus' text format, as its clients ask for it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BYTES = tuple(4.0**power * 1024 for power in range(11))  # 1 KiB to 1 GiB

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

REQUESTS = Counter(
    "interlace_requests",
    "Requests that were answered; a WebSocket counts when it is closed, as 101 if it was opened.",
    ("route", "method", "status"),
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "interlace_request_duration_seconds",
    "From a request's headers to its answer's last byte.",
    ("route", "method"),
    buckets=_SECONDS,
    registry=REGISTRY,
)
STREAMS = Gauge("interlace_streams", "Clients' WebSockets that are open.", registry=REGISTRY)
ACCEPTED = Counter("interlace_jobs_accepted", "Jobs that were taken in.", ("model",), registry=REGISTRY)
PAYLOAD_BYTES = Histogram(
    "interlace_payload_bytes", "Bytes of an accepted job's payload.", buckets=_BYTES, registry=REGISTRY
)
DELIVERY_SECONDS = Histogram(
    "interlace_result_delivery_seconds",
    "From the store to the client's connection: a result over its socket or by its link.",
    ("way",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
DELIVERED_BYTES = Counter(
    "interlace_result_delivered_bytes", "Bytes of results that were sent.", ("way",), registry=REGISTRY
)
for _way in ("socket", "link"):
    DELIVERY_SECONDS.labels(_way)
    DELIVERED_BYTES.labels(_way)
Gauge("interlace_build", "The version that runs.", ("version",), registry=REGISTRY).labels(__version__).set(1)


def accepted(model: str, payload_bytes: int) -> None:
    ACCEPTED.labels(model).inc()
    PAYLOAD_BYTES.observe(payload_bytes)


@contextmanager
def delivering(frame: str | bytes) -> Iterator[None]:
    """Time the block that sends a frame, if the frame is a result."""
    began = time.perf_counter()
    yield
    if isinstance(frame, bytes):
        DELIVERY_SECONDS.labels("socket").observe(time.perf_counter() - began)
        DELIVERED_BYTES.labels("socket").inc(len(frame))


async def delivered(way: str, pieces: AsyncIterator[Piece], size: int) -> AsyncIterator[Piece]:
    """Count a result's pieces on their way, by `socket` or `link`, and the time of one that went whole."""
    began, left = time.perf_counter(), size
    try:
        async for piece in pieces:
            DELIVERED_BYTES.labels(way).inc(len(piece))
            left -= len(piece)
            yield piece
    finally:
        # A client that has all of it may hang up before the connection says so.
        if left == 0:
            DELIVERY_SECONDS.labels(way).observe(time.perf_counter() - began)


def own() -> Iterable[Metric]:
    """What this process has counted and timed."""
    return REGISTRY.collect()


def exposition(*sources: Iterable[Metric]) -> bytes:
    """Families in Prometheus' text format."""
    gathered = CollectorRegistry()
    gathered.register(_Families(sources))
    return generate_latest(gathered)


async def queues(state: State, models: Sequence[HostedModel]) -> list[Metric]:
    """How the hosted models and their queues are, as Redis has it now, and the store's disk."""
    jobs = GaugeMetricFamily("interlace_queue_jobs", "Jobs that wait or run.", labels=("model", "state"))
    age = GaugeMetricFamily(
        "interlace_queue_oldest_age_seconds",
        "Since the oldest job that waits was queued; 0 if there is none.",
        labels=("model",),
    )
    replicas = GaugeMetricFamily("interlace_replicas", "Replicas that show life.", labels=("model", "state"))
    wanted = GaugeMetricFamily("interlace_replicas_wanted", "Replicas that shall run.", labels=("model",))
    failed = GaugeMetricFamily("interlace_model_failed", "1 if the model could not be loaded.", labels=("model",))
    seconds, microseconds = await state.redis.time()
    for hosted in models:
        model, key = str(hosted.card.key), hosted.card.key
        length, running, oldest = (
            await state.queue.length(key),
            await state.queue.running(key),
            await state.queue.oldest(key),
        )
        jobs.add_metric((model, "waiting"), max(0, length - running))
        jobs.add_metric((model, "running"), running)
        age.add_metric((model,), 0.0 if oldest is None else max(0.0, seconds + microseconds / 1e6 - oldest))
        for kind in (ModelState.READY, ModelState.DEPLOYING):
            replicas.add_metric((model, str(kind)), sum(replica.state is kind for replica in hosted.replicas))
        if hosted.wanted is not None:
            wanted.add_metric((model,), hosted.wanted)
        failed.add_metric((model,), hosted.state is ModelState.FAILED)
    return [jobs, age, replicas, wanted, failed, *_of_store(await asyncio.to_thread(state.files.free))]


def _of_store(free: int | None) -> list[Metric]:
    """Nothing of a store that is no folder."""
    text = "Free on the disk of the store, where that is a folder."
    return [] if free is None else [GaugeMetricFamily("interlace_store_free_bytes", text, value=free)]


def of_replicas(snapshots: Iterable[Snapshot]) -> list[Metric]:
    """What all replicas measure; each sample gets its replica's name and model as labels."""
    families: dict[str, Metric] = {}
    for snapshot in snapshots:
        whose = {"model": snapshot.model, "replica": snapshot.replica}
        for family in text_string_to_metric_families(snapshot.text):
            gathered = families.setdefault(family.name, _empty(family))
            for sample in family.samples:
                gathered.samples.append(sample._replace(labels=sample.labels | whose))
    return list(families.values())


def _empty(family: Metric) -> Metric:
    if family.type == "counter":
        return CounterMetricFamily(family.name, family.documentation)
    return Metric(family.name, family.documentation, family.type)


class _Families(Collector):
    def __init__(self, sources: Sequence[Iterable[Metric]]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for source in self._sources:
            yield from source
