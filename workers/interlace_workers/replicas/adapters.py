"""The artifacts and adapters of a job, found and looked at by the parent, also in a folder of the server or on the hub.

The child has no files: what it gets is a descriptor of bytes in memory, which nobody can change.
"""

import asyncio
import fcntl
import io
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from interlace.protocol.adapter import check_diffusers, check_peft
from interlace.protocol.artifact import (
    CONFIG,
    LAYOUTS,
    WEIGHTS,
    AdapterRef,
    Artifact,
    Wanted,
    edit_ref,
    edits_of,
    read_of,
    wanted,
)
from interlace.protocol.errors import AdapterRefused, InterlaceError
from interlace.protocol.job import Job
from interlace.protocol.model import ModelKey
from interlace.protocol.safetensors import read_header
from interlace_state import log
from interlace_state.adapters import check_base, check_edit, check_policy, check_stated_base, check_takes
from interlace_state.models import ModelCard
from interlace_state.settings.adapters import AdaptersConfig
from interlace_state.store import State
from interlace_workers.executors.base import Sealed
from interlace_workers.order import Adapter, Use

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_ALIGNED = 8  # bytes: tensors behind a configuration lie as in a file of their own
_Identity = tuple[object, ...]


class Adapters:
    """What jobs of one model may have attached, and a cache of what they had."""

    def __init__(self, config: AdaptersConfig, state: State, key: ModelKey) -> None:
        self._config = config
        self._state = state
        self._key = key
        #: By what makes two adapters the same; the least recently used first.
        self._cache: OrderedDict[_Identity, Sealed] = OrderedDict()

    async def of(self, job: Job) -> tuple[Sealed, ...]:
        """The adapters, edits and inputs that a job names. Raises UnknownArtifact, InvalidArtifact, AdapterRefused."""
        asked, edits = wanted(job.env), edits_of(job.env)
        inputs = read_of(job.env)
        if job.method is not None:
            edits = tuple(edit_ref(text, "edits") for text in job.method.edits)
            inputs = tuple(AdapterRef.parse(text, "params") for text in job.method.opens)
        if not asked and not edits and not inputs:
            return ()
        card = (await self._state.models.find(self._key)).card
        found = [await self._one(one, card, job.tenant) for one in asked]
        for ref in edits:
            artifact = await self._state.artifacts.named(ref, job.tenant)
            check_edit(artifact, ref, card)
            found.append(await self._artifact(artifact, ref, "edit"))
        for ref in inputs:
            found.append(await self._artifact(await self._state.artifacts.named(ref, job.tenant), ref, "input"))
        return tuple(found)

    async def _artifact(self, artifact: Artifact, ref: AdapterRef, use: Use) -> Sealed:
        """An artifact of any kind, which was looked at when it came."""
        identity = ("artifact", artifact.id, use)
        if (cached := self._cache.get(identity)) is not None:
            self._cache.move_to_end(identity)
            return replace(cached, adapter=replace(cached.adapter, name=ref.text))
        layout = LAYOUTS[artifact.kind]
        config = b"" if layout.config is None else await self._state.artifacts.read(artifact, layout.config)
        config += b" " * (-len(config) % _ALIGNED if layout.config is not None else 0)
        parts = [config]
        if layout.tensors is not None:
            parts.append(await self._state.artifacts.read(artifact, layout.tensors))
        adapter = Adapter(artifact.kind, ref.text, len(config), use=use)
        return self._keep(await asyncio.to_thread(seal_bytes, adapter, parts, identity))

    async def _one(self, asked: Wanted, card: ModelCard, tenant: str) -> Sealed:
        check_takes(asked, card)
        if asked.ref.place == "artifact":
            artifact = await self._state.artifacts.named(asked.ref, tenant)
            check_base(artifact, asked, card)
            asked = replace(asked, kind=artifact.kind)  # of a pipeline's LoRA there are two
            identity: _Identity = ("artifact", artifact.id)
            if (found := self._cached(identity, asked)) is not None:
                return found
            config = await self._state.artifacts.read(artifact, CONFIG) if asked.kind == "peft" else b""
            weights = await self._state.artifacts.read(artifact, WEIGHTS[asked.kind])
        else:
            check_policy(asked.ref, self._config)
            files, identity = await asyncio.to_thread(self._locate, asked)
            if (found := self._cached(identity, asked)) is not None:
                return found
            config, weights = await asyncio.to_thread(self._read, asked, files)
        stated = await asyncio.to_thread(self._check, asked, config, weights)
        if asked.ref.place != "artifact":
            check_stated_base(asked.ref, stated, card)
        return self._keep(await asyncio.to_thread(seal, asked, config, weights, identity))

    def _cached(self, identity: _Identity, asked: Wanted) -> Sealed | None:
        if (found := self._cache.get(identity)) is None:
            return None
        self._cache.move_to_end(identity)
        return replace(found, adapter=replace(found.adapter, **_wished(asked)))

    def _keep(self, sealed: Sealed) -> Sealed:
        self._cache[sealed.identity] = sealed
        while self._cache and sum(os.fstat(one.file.fileno()).st_size for one in self._cache.values()) > (
            self._config.cache_bytes
        ):
            self._cache.popitem(last=False)  # a job that has it holds on to it
        return sealed

    def _check(self, asked: Wanted, config: bytes, weights: bytes) -> str | None:
        """Look at an adapter's own account of itself; the base model that it names. Raises InvalidArtifact. Blocks."""
        header = read_header(io.BytesIO(weights), len(weights), WEIGHTS[asked.kind])
        if asked.kind == "peft":
            return check_peft(config, header, self._config.max_rank).base
        return check_diffusers(header).base

    def _locate(self, asked: Wanted) -> tuple[dict[str, Path], _Identity]:
        """An adapter's files on this machine, and what changes when they do. Raises AdapterRefused. Blocks."""
        try:
            files = self._in_folder(asked) if asked.ref.place == "folder" else self._from_hub(asked)
            return files, (asked.kind, *(_state_of(files[name]) for name in sorted(files)))
        except (OSError, RuntimeError) as error:  # a RuntimeError: links in a circle
            raise AdapterRefused(f"Adapter {asked.ref.text} cannot be read: {_reason(error)}.") from None

    def _in_folder(self, asked: Wanted) -> dict[str, Path]:
        """An adapter's files in a folder that is allowed, wherever links lead. Raises AdapterRefused. Blocks."""
        allowed = [folder.resolve() for folder in self._config.folders]
        files = {}
        for name in _names(asked):
            path = (Path(asked.ref.text) / name).resolve()
            if not any(path.is_relative_to(folder) for folder in allowed):
                raise AdapterRefused(f"Adapter {asked.ref.text}: {name} is a link out of the folders that may be read.")
            if not path.is_file():
                raise AdapterRefused(f"Adapter {asked.ref.text}: there is no {name}.{_pickled(path.parent)}")
            files[name] = path
        return files

    def _from_hub(self, asked: Wanted) -> dict[str, Path]:
        """An adapter's files out of the local Hugging Face cache, or of the hub. Raises AdapterRefused. Blocks."""
        repo_id = asked.ref.text
        try:
            return {name: Path(hf_hub_download(repo_id, name, local_files_only=True)) for name in _names(asked)}
        except LocalEntryNotFoundError:
            pass
        try:
            info = HfApi().model_info(repo_id, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            for name in _names(asked):
                if name not in sizes:
                    raise AdapterRefused(f"Adapter {repo_id}: the repository has no {name}.")
                self._check_size(asked, sizes[name])
            return {name: Path(hf_hub_download(repo_id, name, revision=info.sha)) for name in _names(asked)}
        except InterlaceError:
            raise
        except Exception as error:  # noqa: BLE001 - transport errors are those of the library under huggingface_hub
            log.warning("adapter_not_fetched", adapter=repo_id, error=str(error))
            reason = type(error).__name__  # its text may name what only the operator shall see
            raise AdapterRefused(
                f"Adapter {repo_id} is not in the server's cache, and the hub did not give it ({reason}). Check the "
                "name, or upload the adapter."
            ) from None

    def _read(self, asked: Wanted, files: dict[str, Path]) -> tuple[bytes, bytes]:
        """Configuration and weights. Raises AdapterRefused. Blocks."""
        config = self._bytes(asked, files[CONFIG]) if CONFIG in files else b""
        return config, self._bytes(asked, files[WEIGHTS[asked.kind]])

    def _bytes(self, asked: Wanted, path: Path) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise AdapterRefused(f"Adapter {asked.ref.text}: {path.name} is no regular file.")
                self._check_size(asked, status.st_size)
                return file.read(status.st_size)
        except OSError as error:
            raise AdapterRefused(f"Adapter {asked.ref.text}: {path.name} cannot be read: {error.strerror}.") from None

    def _check_size(self, asked: Wanted, size: int) -> None:
        if size > self._config.max_bytes:
            raise AdapterRefused(
                f"Adapter {asked.ref.text} has {size:,} bytes, over the limit of {self._config.max_bytes:,}. The "
                "operator can raise it: `adapters.max_bytes` in the configuration."
            )


def seal(asked: Wanted, config: bytes, weights: bytes, identity: _Identity = ()) -> Sealed:
    """An adapter as bytes that can be read by whoever has a descriptor, and changed by nobody."""
    adapter = Adapter(asked.kind, config_bytes=len(config), **_wished(asked))
    return seal_bytes(adapter, [config, weights], identity)


def _wished(asked: Wanted) -> dict[str, Any]:
    """What a request says of an adapter, whatever it is."""
    return {"name": asked.ref.text, "weight": asked.weight, "t_min": asked.t_min, "t_max": asked.t_max}


def seal_bytes(adapter: Adapter, parts: Sequence[bytes], identity: _Identity) -> Sealed:
    """As `seal`, of what is told of it already."""
    file = open(os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b", buffering=0)  # noqa: SIM115
    for data in parts:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    return Sealed(adapter, identity, file)


def _names(asked: Wanted) -> list[str]:
    return [CONFIG, WEIGHTS["peft"]] if asked.kind == "peft" else [WEIGHTS[asked.kind]]


def _pickled(folder: Path) -> str:
    """What to do where an adapter's weights are a pickle."""
    if not (folder / "adapter_model.bin").is_file():
        return ""
    return " Its adapter_model.bin is a pickle, which runs code where it is read: save it again as safetensors."


def _state_of(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
