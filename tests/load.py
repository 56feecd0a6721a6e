"""``python load.py JOBS...``: stock clients, one process for each number, that each send so many jobs and poll them.

Prints a JSON line for each job that was accepted: its id, whether it ended with the right value, and what was wrong.
A client whose request had no answer sends it again: only a job whose id it got was accepted.
"""

import json
import os
import sys
import time
from typing import Any

import httpx
import tiny
import torch
from nnsight import CONFIG, TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface

_PROMPT = "The Eiffel Tower is in the city of"
_IN_FLIGHT = 12
_DEADLINE = 1000.0 if os.environ.get("CHAOS") == "all" else 780.0  # seconds
#: Seconds between two looks at one's jobs: each look at each job is a request, and there are eight clients.
_PAUSE = 0.5
_ROWS = 4_000  # of the saved value: some 1 MiB, so that a kill can find it half written


def main(counts: list[int]) -> None:
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    huggingface._ID_CACHE[tiny.GPT2] = tiny.GPT2  # no hub to ask
    client = TransformersModel(tiny.GPT2, task="text-generation")
    local = TransformersModel(tiny.GPT2, task="text-generation", dispatch=True)
    with torch.no_grad(), local.trace(_PROMPT):
        base = local.transformer.h[1].output[0, -1].save()
    clients = []
    for number, count in enumerate(counts):
        if (pid := os.fork()) == 0:
            _one(client, base, number, count)
            os._exit(0)
        clients.append(pid)
    for pid in clients:
        os.waitpid(pid, 0)


def _one(client: Any, base: torch.Tensor, number: int, count: int) -> None:
    waiting: dict[str, tuple[RemoteBackend, float]] = {}
    deadline = time.monotonic() + _DEADLINE
    sent = 0
    while (sent < count or waiting) and time.monotonic() < deadline:
        if sent < count and len(waiting) < _IN_FLIGHT:
            factor = float(number * 10_000 + sent + 1)
            if backend := _send(client, factor):
                waiting[str(backend.job_id)] = (backend, factor)
                sent += 1
        for job_id, (backend, factor) in list(waiting.items()):
            if (verdict := _poll(backend, base, factor)) is not None:
                del waiting[job_id]
                _say(job_id, verdict)
        time.sleep(_PAUSE)
    for job_id in waiting:
        _say(job_id, "it has not ended")


def _send(client: Any, factor: float) -> RemoteBackend | None:
    """A job that was accepted; None where the server was away."""
    rows = _ROWS
    backend = RemoteBackend(client.to_model_key(), env=client._remoteable_get_env(), blocking=False)
    try:
        with client.trace(_PROMPT, backend=backend):
            value = (client.transformer.h[1].output[0, -1] * factor).detach().expand(rows, -1).clone().save()
    except (RemoteError, OSError, httpx.TransportError):
        time.sleep(_PAUSE)
        return None
    return backend


def _poll(backend: RemoteBackend, base: torch.Tensor, factor: float) -> str | None:
    """What is wrong with an ended job, "" if nothing; None while it has not ended or the server is away."""
    try:
        result = backend()
    except RemoteError as error:
        text = str(error)
        return None if _away(text) else text[-400:]
    except (OSError, httpx.TransportError):
        return None
    except httpx.HTTPStatusError as error:
        return None if error.response.status_code == 503 else f"HTTP {error.response.status_code}"
    if result is None:
        return None
    value = result["value"]
    return "" if torch.equal(value, (base * factor).expand_as(value)) else "the value is another one"


def _away(text: str) -> bool:
    return any(sign in text for sign in ("Redis is not", "503", "onnect", "shutting down"))


def _say(job_id: str, wrong: str) -> None:
    sys.stdout.write(json.dumps({"job": job_id, "wrong": wrong}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
