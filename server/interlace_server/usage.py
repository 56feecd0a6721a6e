"""What a tenant uses, added up from its jobs and artifacts: the same that `/v1/jobs` and `/v1/artifacts` list."""

from dataclasses import dataclass, field

from interlace.protocol.job import JobState
from interlace_server.gateway import Gateway
from interlace_state.jobs import MOST

_PAGES = 25  # of 200 jobs


@dataclass
class Usage:
    """Of the jobs that are kept; see `lifetimes.result`."""

    jobs: int = 0
    by_state: dict[JobState, int] = field(default_factory=dict)
    #: Of wall time in the sandbox, and of processor time.
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    result_bytes: int = 0
    artifacts: int = 0
    artifact_bytes: int = 0
    #: Whether there are more jobs than were looked at.
    is_cut: bool = False


async def usage_of(gateway: Gateway, tenant: str) -> Usage:
    """A tenant's."""
    found, cursor = Usage(), None
    for _ in range(_PAGES):
        page = await gateway.state.jobs.list(tenant, before=cursor, limit=MOST)
        for job in page.jobs:
            found.jobs += 1
            found.by_state[job.state] = found.by_state.get(job.state, 0) + 1
            found.result_bytes += job.result_size or 0
            if job.cost is not None:
                found.seconds += job.cost.runtime or 0.0
                found.cpu_seconds += job.cost.cpu_seconds or 0.0
        cursor = page.next
        if cursor is None:
            break
    found.is_cut = cursor is not None
    artifacts = await gateway.state.artifacts.all(tenant)
    found.artifacts, found.artifact_bytes = len(artifacts), sum(one.size for one in artifacts)
    return found
