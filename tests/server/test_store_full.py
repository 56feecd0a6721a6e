"""A store that is full takes no new jobs, says why and when to come back; jobs that it took come to their end."""

from typing import Any

from gateway_process import PICKLE, Worker, publish, saved

from interlace.protocol.event import Ended
from interlace.protocol.job import JobState
from interlace_state.store import open_state


async def test_new_jobs_are_refused_and_running_ones_end(start_gateway: Any) -> None:
    with start_gateway(store={"max_bytes": 1000}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            worker = Worker(state)
            taken = gateway.post(PICKLE, compress=False)
            assert taken.status_code == 200, taken.text
            lease = await worker.start()
            refused = gateway.post(PICKLE + bytes(2000), compress=False)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "60"
            assert "of 1,000 bytes (`store.max_bytes`)" in refused.json()["detail"]
            assert await state.queue.length(worker.key) == 1
            await worker.complete(lease, saved())
            last = await state.events.last(lease.job.id, "local")
            assert isinstance(last, Ended)
            assert last.state is JobState.COMPLETED


async def test_a_disk_without_room_is_a_refusal(start_gateway: Any) -> None:
    with start_gateway(store={"min_free_bytes": 1 << 49}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            refused = gateway.post()
            assert refused.status_code == 503
            assert "store.min_free_bytes" in refused.json()["detail"]
