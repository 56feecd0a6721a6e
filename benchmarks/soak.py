"""Whether a server that works for long keeps anything: memory, descriptors, processes, keys.

    python benchmarks/soak.py [--minutes 5] [--jobs N] [--json FILE]

Four stock clients send mixed jobs to a real server: reads, edits, generation, gradients, sessions, results that go by
URL, jobs that fail, that kill their process, and that are cancelled. Every 10 s the clients hold still for a moment and
the server is looked at. A third of the time is for warming up; then the medians of the sixth after it and of the last
sixth are compared. Jobs are kept for a minute, so that those kept are about as many in both.

Exits with 1 if a process has grown by over 5 %, if there are more processes, descriptors or keys without an end that
belong to no kept job, or if a job ended otherwise than it should. A replica's pool may open a connection late: three
descriptors more of one process are no leak.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

import psutil
import service
import soak_jobs
from redis import Redis

_CLIENTS = 4
_EVERY = 10.0  # seconds
_SETTLE = 1.0  # seconds until what a job's end sets off is over
_STILL = 60.0  # seconds within which every client ends its job
_MOST_GROWTH = 5.0  # percent
_SPARE_DESCRIPTORS = 3
_SOON = 120  # seconds: a key that goes by itself in these is none that stays
_GONE = -2  # what Redis says of the lifetime of a key that is no more
#: What a command line holds -> what the process is.
_NAMES = {
    "interlace_workers.zygote": "zygote",
    "replica_process": "replica",
    "interlace_server": "gateway",
    "interlace_workers": "placer",
    "redis": "redis",
    "valkey": "redis",
    "interlace_deploy": "up",
}


class Gate:
    """Where clients pass between two jobs, and can be held."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._closed = False
        self._here = 0
        self.over = False

    def passed(self) -> bool:
        """Wait while the gate is closed; whether to go on."""
        with self._changed:
            self._here += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._closed)
            self._here -= 1
            return not self.over

    @contextmanager
    def held(self) -> Iterator[None]:
        """No client has a job while the block runs."""
        with self._changed:
            self._closed = True
            if not self._changed.wait_for(lambda: self._here == _CLIENTS, _STILL):
                raise SystemExit(f"a job has not ended within {_STILL:g} s")
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


@dataclass(frozen=True)
class Sample:
    """The server at one moment, with no job running."""

    second: float
    jobs: int
    #: Of each long-lived process: resident bytes, and open descriptors.
    resident: dict[str, int]
    descriptors: dict[str, int]
    #: All of them, those that wait for a job included.
    processes: int
    #: By their first word.
    keys: dict[str, int]
    #: Of those, the ones that no kept job has and that do not end by themselves in two minutes.
    stray_keys: dict[str, int]
    #: Ids in the index of jobs whose record is gone; the gateway removes them every five minutes.
    stale_ids: int
    #: What the index takes in Redis.
    index_bytes: int
    #: What Redis has allocated for everything.
    redis_bytes: int
    store_files: int
    store_bytes: int


def look(server: service.Service, redis: "Redis[bytes]", second: float, jobs: int) -> Sample:
    root = psutil.Process(server.process.pid)
    everyone = [root, *root.children(recursive=True)]
    resident: Counter[str] = Counter()
    descriptors: Counter[str] = Counter()
    for process in everyone:
        if (name := _name(process)) is not None:
            resident[name] += process.memory_info().rss
            descriptors[name] += process.num_fds()
    files = [path.stat().st_size for path in (server.state_dir / "store").rglob("*") if path.is_file()]
    return Sample(
        second=round(second, 1),
        jobs=jobs,
        resident=dict(resident),
        descriptors=dict(descriptors),
        processes=len(everyone),
        store_files=len(files),
        store_bytes=sum(files),
        **_keys(redis, server.config.redis.prefix),
    )


def _name(process: psutil.Process) -> str | None:
    """What a long-lived process is; None for a job's."""
    words = " ".join(process.cmdline())
    parent = process.parent()
    if "zygote" in words and parent is not None and "zygote" in " ".join(parent.cmdline()):
        return None
    return next((name for mark, name in _NAMES.items() if mark in words), None)


def _keys(redis: "Redis[bytes]", prefix: str) -> dict[str, Any]:
    """Keys by kind, strays, and what the index of jobs holds."""
    names = [name.decode().removeprefix(prefix) for name in redis.scan_iter(f"{prefix}*", count=1000)]
    kept = {name.removeprefix("job:") for name in names if name.startswith("job:")}
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.ttl(prefix + name)
    stray: Counter[str] = Counter()
    for name, left in zip(names, pipe.execute(), strict=True):
        kind, _, rest = name.partition(":")
        of_kept = kind in ("job", "idem") or (kind == "events" and rest in kept)
        if not of_kept and left != _GONE and not 0 <= left <= _SOON:
            stray[kind] += 1
    stale = sum(one.decode() not in kept for one in redis.zrange(f"{prefix}jobs", 0, -1))
    kinds = Counter(name.partition(":")[0] for name in names)
    indexes = [name for name in names if name.partition(":")[0] == "jobs"]
    return {
        "keys": dict(sorted(kinds.items())),
        "stray_keys": dict(sorted(stray.items())),
        "stale_ids": stale,
        "index_bytes": sum(redis.memory_usage(prefix + name, samples=0) or 0 for name in indexes),
        "redis_bytes": redis.info("memory")["used_memory"],
    }


class Load:
    """The clients, and how their jobs ended."""

    def __init__(self, server: service.Service, gate: Gate, most: int | None) -> None:
        self._server = server
        self._gate = gate
        self._most = most
        self.ended: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    def run(self, number: int) -> None:
        """One client, until the gate says that it is over."""
        chance = random.Random(number)  # the same jobs each time
        client = soak_jobs.Sender(self._server.url)
        kinds: Sequence[Callable[[], None]] = client.kinds()
        while self._gate.passed():
            if self._most is not None and self.ended.total() >= self._most:
                time.sleep(0.1)  # until somebody looks
                continue
            kind = chance.choice(kinds)
            try:
                kind()
            except Exception as error:  # noqa: BLE001 - it is told at the end
                self.wrong[f"{kind.__name__}: {type(error).__name__}: {str(error)[-200:]}"] += 1
            self.ended[kind.__name__] += 1

    @property
    def full(self) -> bool:
        return self._most is not None and self.ended.total() >= self._most


def soak(minutes: float, most: int | None) -> tuple[list[Sample], Load]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        configuration = {
            "runtime": "process",
            "models": [service.small_gpt2(folder / "gpt2", slots=2)],
            "store": {"inline_bytes": 1 << 20},
            "lifetimes": {"result": 60},
            "gateway": {"drain_seconds": 1},
        }
        with service.running(folder, configuration) as server, Redis.from_url(server.config.redis.url) as redis:
            service.stock_client(server.url, folder / "hf")
            gate, samples = Gate(), []
            load = Load(server, gate, most)
            with ThreadPoolExecutor(_CLIENTS) as pool:
                clients = [pool.submit(load.run, number) for number in range(_CLIENTS)]
                begun = time.monotonic()
                try:
                    while time.monotonic() - begun < 60 * minutes and not load.full:
                        time.sleep(_EVERY)
                        with gate.held():
                            time.sleep(_SETTLE)
                            samples.append(look(server, redis, time.monotonic() - begun, load.ended.total()))
                finally:
                    gate.over = True
                for client in clients:
                    client.result()
    return samples, load


def _mebibytes(name: str, sample: Sample) -> float:
    """Redis without the index, which grows until the gateway comes by: a soak may be shorter than that."""
    index = sample.index_bytes if name == "redis" else 0
    return round((sample.resident[name] - index) / (1 << 20), 1)


def _descriptors(name: str, sample: Sample) -> float:
    return sample.descriptors[name]


def judge(samples: Sequence[Sample]) -> tuple[list[tuple[str, float, float, float]], list[str]]:
    """Rows of (what, early, late, growth in percent), and what has leaked."""
    whole = samples[-1].second
    early = [one for one in samples if whole / 3 <= one.second < whole / 2]
    late = [one for one in samples if one.second >= whole * 5 / 6]
    rows, leaks = [], []

    def compare(what: str, read: Callable[[Sample], float], spare: float, percent: float = 0.0) -> None:
        one, other = statistics.median(map(read, early)), statistics.median(map(read, late))
        growth = 100 * (other - one) / one if one else 0.0
        rows.append((what, one, other, growth))
        if other > one + spare and growth > percent:
            leaks.append(f"{what}: {one:g} -> {other:g}")

    for name in sorted(samples[-1].resident):
        compare(f"{name}, MiB", partial(_mebibytes, name), 0, _MOST_GROWTH)
    for name in sorted(samples[-1].descriptors):
        compare(f"{name}, descriptors", partial(_descriptors, name), _SPARE_DESCRIPTORS)
    compare("processes", lambda one: one.processes, 0)
    compare("keys of no kept job", lambda one: sum(one.stray_keys.values()), 0)
    return rows, leaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--jobs", type=int, help="stop after so many, if that is sooner")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    samples, load = soak(arguments.minutes, arguments.jobs)
    if len(samples) < 6:
        print(f"{len(samples)} looks are too few to compare: let it run for longer than a minute")
        return 1
    rows, leaks = judge(samples)
    print(f"{'':28}{'early':>10}{'late':>10}{'growth':>10}")
    for what, one, other, growth in rows:
        print(f"{what:28}{one:>10g}{other:>10g}{growth:>9.1f}%")
    last = samples[-1]
    print(f"jobs: {dict(load.ended)}, together {load.ended.total()} in {last.second:g} s")
    print(f"keys: {last.keys}; of no kept job: {last.stray_keys}")
    print(
        f"index: {last.index_bytes:,} bytes, {last.stale_ids} stale ids in it; all of Redis: {last.redis_bytes:,} bytes"
    )
    print(f"store: {last.store_files} files, {last.store_bytes / (1 << 20):.1f} MiB")
    for what, count in load.wrong.items():
        print(f"ended wrongly, {count} times: {what}")
    print("\n".join(f"LEAK  {leak}" for leak in leaks) or "no leak")
    if arguments.json:
        figures = {
            "samples": [asdict(one) for one in samples],
            "leaks": leaks,
            "ended": load.ended,
            "wrong": load.wrong,
        }
        arguments.json.write_text(json.dumps(figures | service.circumstances(), indent=2) + "\n")
    print(json.dumps(service.circumstances()))
    return 1 if leaks or load.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
