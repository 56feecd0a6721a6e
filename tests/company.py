"""Jobs of several clients that wait for a model together, so that they may share a forward."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import running
from nnsight import TransformersModel

import interlace
from interlace.protocol.job import JobState

DEADLINE = 120.0  # seconds


@contextlib.contextmanager
def waiting(server: running.Running, repo_id: str, count: int) -> Iterator[None]:
    """Hold the model back until so many jobs of the block's clients wait for it."""
    with interlace.Client(server.url) as operator:
        operator.pause(repo_id)

        def resume() -> None:
            end = time.monotonic() + DEADLINE
            while sum(job.state is JobState.QUEUED for job in operator.jobs()) < count and time.monotonic() < end:
                time.sleep(0.05)
            operator.resume(repo_id)

        resuming = threading.Thread(target=resume)
        resuming.start()
        try:
            yield
        finally:
            resuming.join()


def together(
    server: running.Running, repo_id: str, cases: list[Callable[[Any, Any], Any]], task: str = "text-generation"
) -> list[Any]:
    """Run each case in a thread of its own, on a model object of its own, all at once."""
    clients = [TransformersModel(repo_id, task=task) for _ in cases]
    with waiting(server, repo_id, len(cases)), ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(lambda case, client: case(client, True), cases, clients))


def merged(tracer: Any) -> int:
    """Jobs in the forward, as the server says; 0 for one that ran alone."""
    meta = getattr(getattr(tracer, "backend", None), "meta", None) or {}
    return int(meta.get("merged", 0))
