"""How fast a large result reaches the user's tensors, beside plain HTTP and torch.load of the same bytes.

    python benchmarks/large_results.py [--megabytes 1 16 256] [--gib] [--rounds 3] [--raw] [--inline BYTES]
                                       [--json FILE]

A stock client, and ours (`own`), save tensors of a size with `remote=True`: fp32 noise, which does not compress, as
activations do not, and fp32 that once was bfloat16, which does. Beside it, in turn and in the same process: the same
bytes as torch.save wrote them, from Python's http.server on loopback, fetched with httpx in the way of the stock client
(`plain`) and with urllib (`bare`), then torch.load; and the same block traced locally, whose time is taken off the
remote ones, for making the tensors is no part of their way. Medians; results are deleted after each round. The
gateway's resident memory is sampled all the while. `--raw` has both clients ask for results as they are, by nnsight's
own `CONFIG.API.COMPRESS = False`. Without it what compresses comes compressed to the stock client, and to ours until
8 MiB or more have come faster than that pays: on loopback the first such round of a run, which is one of noise.
"""

import argparse
import http.server
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import service

KINDS = ("noise", "bfloat16")
_MB = 1 << 20
_SAMPLED = 0.02  # seconds


class Rounds:
    """One size and kind, fetched in each way."""

    def __init__(self, url: str, model: Any, here: Any, folder: Path, size: int, kind: str) -> None:
        import torch

        self._url, self._model, self._here = url, model, here
        self._size, self._kind = size, kind
        self._file = folder / f"{kind}-{size}"
        with torch.no_grad():
            self.check = self._trace(here, False)
        torch.save({"saved": self.check}, self._file, pickle_protocol=4)

    def _trace(self, model: Any, remote: bool) -> Any:
        import torch

        tokens, kind = torch.arange(8)[None], self._kind
        tile, tiles = min(self._size, 16 * _MB) // 4, max(1, self._size // (16 * _MB))
        with model.trace(tokens, remote=remote):
            made = torch.randn(tile, generator=torch.Generator().manual_seed(1))
            if kind == "bfloat16":
                made = made.bfloat16().float()
            saved = made.repeat(tiles).save()
        return saved

    def remote(self) -> Any:
        return self._trace(self._model, True)

    def own(self) -> Any:
        import interlace

        with interlace.connect(os.environ["NDIF_HOST"]) as client, client.installed():
            return self._trace(self._model, True)

    def local(self) -> Any:
        return self._trace(self._here, False)

    def plain(self) -> Any:
        import httpx
        import torch

        buffer = io.BytesIO()
        with httpx.Client(timeout=60) as client, client.stream("GET", f"{self._url}/{self._file.name}") as response:
            for chunk in response.iter_bytes(chunk_size=128 * 1024):
                buffer.write(chunk)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)["saved"]

    def bare(self) -> Any:
        import torch

        with urllib.request.urlopen(f"{self._url}/{self._file.name}") as response:
            content = response.read()
        return torch.load(io.BytesIO(content), weights_only=False)["saved"]

    def run(self, rounds: int) -> dict[str, float]:
        """Median seconds of each way, taken in turn."""
        import torch

        ways: dict[str, Callable[[], Any]] = {
            "remote": self.remote, "own": self.own, "local": self.local, "plain": self.plain, "bare": self.bare
        }  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + (self._size <= 16 * _MB)):
            for name, way in ways.items():
                began = time.perf_counter()
                value = way()
                taken[name].append(time.perf_counter() - began)
                assert number or torch.equal(value, self.check), name
                del value
            forget()
        return {name: statistics.median(seconds[-rounds:]) for name, seconds in taken.items()}


def forget() -> None:
    """Delete the results of this round: a machine that has to find memory for the next ones is slow at that."""
    import interlace

    with interlace.connect(os.environ["NDIF_HOST"]) as client:
        for job in client.jobs():
            client.delete(job.id)


def measure(url: str, folder: Path, sizes: list[int], rounds: int, raw: bool) -> list[dict[str, Any]]:
    service.stock_client(url, folder / "hf")
    from nnsight import CONFIG, TransformersModel

    CONFIG.API.COMPRESS = not raw
    model = TransformersModel(service.GPT2, task="text-generation")
    here = TransformersModel(str(folder / "gpt2"), task="text-generation", dispatch=True)
    figures = []
    with _http_server(folder) as files:
        for size in sizes:
            for kind in KINDS[: 1 if size > 256 * _MB else None]:
                seconds = Rounds(files, model, here, folder, size, kind).run(rounds if size <= 256 * _MB else 1)
                way, own = (max(1e-9, seconds[name] - seconds["local"]) for name in ("remote", "own"))
                figures.append(
                    {"mb": size // _MB, "kind": kind}
                    | {f"{name}_seconds": round(value, 4) for name, value in seconds.items()}
                    | {f"{name}_mb_per_s": round(size / seconds[name] / 1e6) for name in ("plain", "bare")}
                    | {"remote_mb_per_s": round(size / way / 1e6)}
                    | {f"of_{name}": round(seconds[name] / way, 2) for name in ("plain", "bare")}
                    | {f"own_of_{name}": round(seconds[name] / own, 2) for name in ("plain", "bare")}
                )
                print(_row(figures[-1]), flush=True)
    return figures


_HEAD = " " * 18 + "  remote s  local s   MB/s  plain MB/s  of plain  bare MB/s  of bare  own s  own of plain"


def _row(one: dict[str, Any]) -> str:
    return (
        f"{one['mb']:>5} MB {one['kind']:9}{one['remote_seconds']:>10.3f}{one['local_seconds']:>9.3f}"
        f"{one['remote_mb_per_s']:>7}{one['plain_mb_per_s']:>12}{one['of_plain']:>10}{one['bare_mb_per_s']:>11}"
        f"{one['of_bare']:>9}{one['own_seconds']:>7.3f}{one['own_of_plain']:>14}"
    )


@contextmanager
def _http_server(folder: Path) -> Iterator[str]:
    """Python's own server of files, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, told: Connection) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        told.send(server.server_port)
        server.serve_forever()


class Resident:
    """Samples the resident memory of the gateway below a process."""

    def __init__(self, pid: int) -> None:
        processes = psutil.Process(pid).children(recursive=True)
        (self._gateway,) = (one for one in processes if "interlace_server" in one.cmdline())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.before = self.peak = 0

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLED):
            self.peak = max(self.peak, self._gateway.memory_info().rss)

    def __enter__(self) -> "Resident":
        self.before = self._gateway.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--gib", action="store_true", help="also 1 GiB, once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--raw", action="store_true", help="results that are not compressed")
    parser.add_argument("--inline", type=int, help="`store.inline_bytes`, e.g. 0 to send everything by link")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    sizes = [size * _MB for size in arguments.megabytes] + ([1 << 30] if arguments.gib else [])
    store = {} if arguments.inline is None else {"inline_bytes": arguments.inline}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        models = [service.small_gpt2(folder / "gpt2")]
        configuration = {"runtime": "process", "models": models, "store": store}
        print(_HEAD)
        with service.running(folder, configuration) as server, Resident(server.process.pid) as resident:
            figures = {"results": measure(server.url, folder, sizes, arguments.rounds, arguments.raw)}
    before, peak = resident.before / _MB, resident.peak / _MB
    print(f"gateway: {before:.0f} MiB before, {peak:.0f} MiB at most")
    figures |= service.circumstances() | {
        "inline_bytes": arguments.inline,
        "raw": arguments.raw,
        "gateway_mib": {"before": round(before), "peak": round(peak)},
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
