"""Many clients of one gateway: some wait on an open WebSocket while others trace without pause.

    python benchmarks/connections.py [--idle 200] [--active 64] [--seconds 20] [--runtime process|ray] [--json FILE]

A GPT-2 of 2M parameters on one replica. The idle ones hold the socket that stock nnsight opens; the active ones are
stock nnsight's `AsyncRemoteBackend`, as many in each of a few processes: each posts a minimal trace, waits for its
value on its own WebSocket, compares it and posts the next. Prints how many traces were served, errors, p50 and p95 of
the time from the call to the value, and what the gateway holds. Clients and server share the machine's cores.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import service
import websocket

_PATIENCE = 60.0  # seconds


def active(url: str, home: Path, clients: int, started: Any, seconds: float, answers: Any) -> None:
    """So many stock clients for so long, from when all processes are ready; their seconds and errors are answered."""
    os.environ["NNSIGHT_CONFIG"] = os.devnull
    service.stock_client(url, home)
    import torch
    from nnsight import TransformersModel
    from nnsight.intervention.backends.remote import AsyncRemoteBackend

    model = TransformersModel(service.GPT2, task="text-generation")
    key, env = model.to_model_key(), model._remoteable_get_env()
    tokens = torch.arange(8)[None]
    took: list[float] = []
    errors: list[str] = []

    def posted() -> AsyncRemoteBackend:
        backend = AsyncRemoteBackend(key, env=env)
        with model.trace(tokens, backend=backend):
            hidden = model.transformer.h[3].output[0, -1].save()
        return backend

    async def one(until: float) -> None:
        first = None
        while time.monotonic() < until:
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(_PATIENCE):
                    hidden = (await posted())["hidden"]
                first = hidden if first is None else first
                if not torch.equal(hidden, first):
                    errors.append("another value")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                errors.append(f"{type(error).__name__}: {str(error)[-200:]}")
            took.append(time.perf_counter() - begun)

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(clients + 4))
        started.wait()
        until = time.monotonic() + seconds
        await asyncio.gather(*(one(until) for _ in range(clients)))

    asyncio.run(run())
    answers.put((took, errors))


def measure(url: str, gateway: psutil.Process, home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    started, answers = spawn.Barrier(arguments.processes + 1), spawn.Queue()
    shares = [arguments.active // arguments.processes] * arguments.processes
    shares[0] += arguments.active - sum(shares)
    clients = [
        spawn.Process(target=active, args=(url, home, share, started, arguments.seconds, answers)) for share in shares
    ]
    for client in clients:
        client.start()
    before = gateway.memory_info().rss
    idle = [websocket.create_connection(f"ws{url.removeprefix('http')}/subscribe") for _ in range(arguments.idle)]
    greeted = sum("session_id" in json.loads(one.recv()) for one in idle)
    started.wait()
    time.sleep(arguments.seconds / 2)
    during, descriptors = gateway.memory_info().rss, gateway.num_fds()
    found = [answers.get() for _ in clients]
    for client in clients:
        client.join()
    took = [one for seconds, _ in found for one in seconds]
    errors = [one for _, some in found for one in some]
    alive = 0
    for one in idle:
        one.settimeout(_PATIENCE)
        one.ping()
        alive += one.recv_frame().opcode == websocket.ABNF.OPCODE_PONG
        one.close()
    return {
        "idle": {"opened": greeted, "alive_at_the_end": alive},
        "active": {
            "clients": arguments.active,
            "served": len(took) - len(errors),
            "errors": len(errors),
            "a_second": round(len(took) / arguments.seconds, 1),
            "p50_ms": round(1000 * statistics.median(took), 1),
            "p95_ms": round(1000 * statistics.quantiles(took, n=20)[-1], 1),
        },
        "gateway": {"before_mib": before >> 20, "during_mib": during >> 20, "descriptors": descriptors},
        "first_errors": errors[:3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("ray", "process"), default="process")
    parser.add_argument("--idle", type=int, default=200, help="clients that only wait")
    parser.add_argument("--active", type=int, default=64, help="clients that trace")
    parser.add_argument("--processes", type=int, default=2, help="among which the active ones are divided")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        configuration = {"runtime": arguments.runtime, "models": [service.small_gpt2(folder / "model")]}
        with service.running(folder, configuration) as server:
            [gateway] = [
                one
                for one in psutil.Process(server.process.pid).children(recursive=True)
                if "interlace_server" in " ".join(one.cmdline())
            ]
            figures = measure(server.url, gateway, folder / "hf", arguments)
    figures |= service.circumstances() | {"runtime": arguments.runtime, "seconds": arguments.seconds}
    ours, idle, held = figures["active"], figures["idle"], figures["gateway"]
    print(f"idle:    {idle['opened']} opened, {idle['alive_at_the_end']} alive at the end")
    print(f"active:  {ours['clients']} clients, {ours['served']} traces served, {ours['errors']} errors")
    print(f"         {ours['a_second']} a second, p50 {ours['p50_ms']} ms, p95 {ours['p95_ms']} ms")
    print(f"gateway: {held['before_mib']} MiB before, {held['during_mib']} during, {held['descriptors']} descriptors")
    for error in figures["first_errors"]:
        print(f"error: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
