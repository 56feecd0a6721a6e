"""What somebody does with jobs: stop one, forget one. The API's routes and the pages call these."""

from interlace.protocol.jobs import JobView
from interlace_server.changes import note
from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway


def reach(caller: Caller) -> str | None:
    """Whose jobs a caller may see: its tenant's, or for an admin anybody's."""
    return None if caller.role == "admin" else caller.tenant


async def cancel(gateway: Gateway, caller: Caller, job_id: str) -> JobView | None:
    """Stop a job that waits or runs; None for one that had ended. Raises UnknownJob.

    A method that runs is first asked to end with what it has; asked again, it is stopped at once.
    """
    state = gateway.state
    job = await state.jobs.show(job_id, reach(caller))
    by = "its owner" if caller.tenant == job.tenant else "an operator"
    if job.method is not None and await state.queue.stop(job_id, f"Cancelled by {by}: it ends with what it has."):
        note(gateway, caller, "job cancelled", job=job.id, owner=job.tenant)
    elif await state.queue.cancel(job_id, f"The job was cancelled by {by}."):
        await state.results.delete_payload(job_id)
        note(gateway, caller, "job cancelled", job=job.id, owner=job.tenant)
    else:
        return None
    return await state.jobs.show(job_id, reach(caller))


async def forget(gateway: Gateway, caller: Caller, job_id: str) -> None:
    """Remove all that is kept of a job that has ended, but for the artifacts that it made. Raises UnknownJob."""
    state = gateway.state
    job = await state.jobs.show(job_id, reach(caller))
    await state.results.delete(job_id)
    await state.checkpoints.delete(job_id)
    await state.lake.forget(job_id)
    await state.jobs.forget(job)  # after its bytes: whoever is interrupted here finds the job again, and repeats
    note(gateway, caller, "job deleted", job=job.id, owner=job.tenant)
