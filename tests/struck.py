"""A job whose worker is killed while it runs."""

from collections.abc import AsyncIterable
from typing import Any

import psutil


async def result_after(updates: AsyncIterable[Any], victim: psutil.Process) -> dict[str, Any]:
    """Kill the victim when the job says `it runs`; what the stock client has in the end, of a job that began twice."""
    starts, result = 0, None
    async for update in updates:
        if isinstance(update, dict):
            result = update
            continue
        assert update.status.value != "ERROR", update.description
        if update.status.value == "LOG" and "it runs" in update.description:
            starts += 1
            if starts == 1:
                victim.kill()
    assert starts == 2
    assert result is not None
    return result
