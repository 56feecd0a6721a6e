"""Promise: a client that goes away leaves nothing running that would hold up the next."""

import asyncio
import time

import pytest
import running
import tiny
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend, RemoteError
from nnsight.schema.response import Status
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"


DEADLINE = 120.0  # seconds


def test_the_job_of_a_client_that_left_is_cancelled(lab: Lab, on_ray: running.Running) -> None:
    client = lab.client(tiny.GPT2)
    backend = AsyncRemoteBackend(client.to_model_key())
    with client.trace(PROMPT, backend=backend):
        import time as clock

        clock.sleep(600)
        logits = client.lm_head.output.save()
    update = asyncio.run(backend.receive())
    while update.status is not Status.RUNNING:
        update = asyncio.run(backend.receive())
    backend.close()

    poll = RemoteBackend(client.to_model_key(), blocking=False, job_id=update.id)
    with pytest.raises(RemoteError, match="The client left"):
        poll_until(poll, time.monotonic() + DEADLINE)  # the job would go on for ten minutes
    with client.trace(PROMPT, remote=True):
        logits = client.lm_head.output.save()
    assert logits.shape[0] == 1


def poll_until(poll: RemoteBackend, deadline: float) -> None:
    while time.monotonic() < deadline:
        poll()
        time.sleep(0.05)
