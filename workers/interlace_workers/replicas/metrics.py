"""What a replica measures: the name of every metric. The gateway adds `model` and `replica` to each.

Labels have few values, all of them known here, so that a counter is there before its first event.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.process_collector import ProcessCollector

from interlace_workers import steps

disable_created_metrics()  # type: ignore[no-untyped-call]

#: Why a job came to nothing inside its sandbox.
FAILURES = ("raised", "wall_seconds", "memory_bytes", "broken_frame", "died", "cancelled")
#: How a job left this replica: `refused` before it reached a sandbox; `not_stored` where the store did not take its
#: result; `taken_away` when it was cancelled or had become another replica's; `given_back` when this one stopped;
#: `apart` when it could not share a forward and went back to run alone;
#: `lost` with the process that held the model.
OUTCOMES = ("completed", *FAILURES, "refused", "not_stored", "taken_away", "given_back", "apart", "lost")
#: Why a sandbox was ended: it had said `finished` or that its job `raised`, was over a limit, spoke nonsense, had ended
#: by itself, or nobody wanted its job any more (`closed`).
KILLS = ("finished", *FAILURES, "closed")
STEPS = ("fork", *steps.NAMES, "transfer")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 3600)
_BYTES = tuple(4.0**power * (1 << 20) for power in range(9))  # 1 MiB to 64 GiB

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

JOBS = Counter("interlace_jobs", "Jobs that left a replica, by how.", ("outcome",), registry=REGISTRY)
WAIT_SECONDS = Histogram(
    "interlace_job_wait_seconds",
    "From a job's acceptance to a replica's taking it.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
EXECUTE_SECONDS = Histogram(
    "interlace_job_execute_seconds",
    "A job's time in its sandbox, from the order to its end.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
TRANSFER_SECONDS = Histogram(
    "interlace_job_transfer_seconds",
    "From a result's end in the sandbox to its place in the store.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
STEP_SECONDS = Histogram(
    "interlace_job_step_seconds",
    "A job's time by step; a sandbox's own word on what it did is taken only where it can be true.",
    ("step",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
CPU_SECONDS = Counter("interlace_job_cpu_seconds", "Processor time of jobs' sandboxes.", registry=REGISTRY)
JOB_MEMORY_BYTES = Histogram(
    "interlace_job_memory_peak_bytes",
    "The most that a job held over what the model itself holds.",
    buckets=_BYTES,
    registry=REGISTRY,
)
RESULTS = Counter("interlace_results_stored", "Results that were put into the store.", registry=REGISTRY)
RESULT_BYTES = Counter("interlace_result_stored_bytes", "Bytes of these results.", registry=REGISTRY)
VALUES = Counter("interlace_values_streamed", "Values that left before their job's end.", registry=REGISTRY)
VALUE_BYTES = Counter("interlace_value_streamed_bytes", "Bytes of these values.", registry=REGISTRY)
SANDBOX_STARTS = Counter("interlace_sandbox_starts", "Sandboxes that were forked and sealed.", registry=REGISTRY)
SANDBOX_START_SECONDS = Histogram(
    "interlace_sandbox_start_seconds",
    "To fork and seal a sandbox, mostly ahead of its job.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
SANDBOX_KILLS = Counter("interlace_sandbox_kills", "Sandboxes that ended.", ("reason",), registry=REGISTRY)
MERGED = Histogram(
    "interlace_job_merged",
    "Jobs in a job's forward, itself included.",
    buckets=(1, 2, 4, 8, 16, 32, 64),
    registry=REGISTRY,
)
WEIGHTS_BYTES = Gauge("interlace_weights_loaded_bytes", "Bytes of the weights that are loaded.", registry=REGISTRY)
PARAMETERS = Gauge("interlace_weights_loaded_parameters", "Parameters that are loaded.", registry=REGISTRY)
LOAD_SECONDS = Gauge("interlace_weights_load_seconds", "How long loading took.", registry=REGISTRY)
RESIDENT_BYTES = Gauge(
    "interlace_weights_resident_bytes", "Memory of the process that holds the weights.", registry=REGISTRY
)
READY = Gauge("interlace_replica_ready", "1 if the replica takes jobs.", registry=REGISTRY)
RUNNING = Gauge("interlace_replica_running_jobs", "Jobs that the replica holds.", registry=REGISTRY)
SLOTS = Gauge("interlace_replica_slots", "Jobs that it can run at a time.", registry=REGISTRY)

for _outcome in OUTCOMES:
    JOBS.labels(_outcome)
for _reason in KILLS:
    SANDBOX_KILLS.labels(_reason)
for _step in STEPS:
    STEP_SECONDS.labels(_step)


def exposition() -> bytes:
    """All of it in Prometheus' text format."""
    return generate_latest(REGISTRY)
