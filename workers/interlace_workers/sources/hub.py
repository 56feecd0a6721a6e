"""A repository of the Hugging Face hub: out of the local cache where it is complete, else over the network."""

import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import (
    HfApi,
    ModelInfo,
    constants,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CacheNotFound, HFValidationError, LocalEntryNotFoundError

from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import fetching, pipeline, weights
from interlace_workers.sources.source import Say, Source, SourceError, Tell

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
#: What says that a folder is a model, or a pipeline.
_OWN = ["config.json", pipeline.INDEX]
_HEAVY = (".safetensors", ".bin")
_SMALL = ("*.json", "*.txt", "*.model", "*.spm", "*.codes", "*.jinja", "*.tiktoken")


def is_repo_id(source: str) -> bool:
    return _REPO_ID.fullmatch(source) is not None


def resolve(
    model: ModelConfig, say: Say, tell: Tell | None = None, most_bytes: int | None = None, *, small: bool = False
) -> Source:
    """The repository's snapshot on this machine. Raises SourceError, with what to type.

    ``small``: without the weights, where they would have to come over the network. See `resolving.find`.
    """
    folder = _in_cache(model.source, model.revision)
    if folder is None:
        return _fetch(model, say, tell, most_bytes, small=small)
    repo_id, size = model.source, weights.size(folder)
    if most_bytes is not None and size > most_bytes:
        raise too_large(repo_id, size, most_bytes)
    return Source(
        path=folder,
        repo_id=model.repo_id or repo_id,
        revision=model.revision,
        commit=folder.name,
        size_bytes=size,
        with_code=model.trust_remote_code,
    )


def is_pipeline(repo_id: str, revision: str) -> bool:
    """Whether the local cache has it as a pipeline of diffusers."""
    with suppress(HFValidationError):
        return isinstance(try_to_load_from_cache(repo_id, pipeline.INDEX, revision=revision), str)
    return False


def too_large(repo_id: str, size: int, most: int) -> SourceError:
    return SourceError(
        f"{repo_id} has {size:,} bytes of weights; {most:,} may come on demand (`on_demand.size_bytes`). An operator "
        f"can host it: `interlace deploy {repo_id}`."
    )


def cached() -> Iterator[tuple[str, Path]]:
    """Repo id and snapshot of every complete model in the local Hugging Face cache."""
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in repo.revisions:
            if repo.repo_type == "model" and _complete(revision.snapshot_path):
                yield repo.repo_id, revision.snapshot_path


def _in_cache(repo_id: str, revision: str) -> Path | None:
    try:
        # Of an allowed name only, for a snapshot that lacks README.md counts as incomplete otherwise.
        folder = snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=_OWN)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise SourceError(f"{repo_id!r} is not a hub repo id: {error}") from None
    return Path(folder) if _complete(Path(folder)) else None


def _complete(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in _OWN) and bool(weights.files(folder))
    except SourceError:  # a damaged index: the hub is asked
        return False


def _fetch(model: ModelConfig, say: Say, tell: Tell | None, most_bytes: int | None, *, small: bool) -> Source:
    """Download what is needed."""
    try:
        info = HfApi().model_info(model.source, revision=model.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        needed = _needed(info, set(sizes), model)
        checkpoint = {name for name in needed if name.endswith(_HEAVY)}
        size = sum(sizes[name] for name in checkpoint)
        if most_bytes is not None and size > most_bytes:
            raise too_large(info.id, size, most_bytes)
        if small:
            needed = sorted(set(needed) - checkpoint)
        total = sum(sizes[name] for name in needed)
        say(f"downloading {info.id} ({total / 1e6:,.0f} MB) from {constants.ENDPOINT}")
        if tell is None:
            folder = Path(snapshot_download(info.id, revision=model.revision, allow_patterns=needed))
        else:
            folder = fetching.fetch(info.id, model.revision, needed, total, tell)
    except SourceError:
        raise
    except Exception as error:
        # Transport errors are those of the library under huggingface_hub: requests, httpx or httpx2 by its version.
        raise SourceError(fetching.why(error, model.source, model.revision)) from error
    return Source(
        path=folder,
        repo_id=model.repo_id or info.id,
        revision=model.revision,
        commit=folder.name,
        size_bytes=size,
        n_params=getattr(getattr(info, "safetensors", None), "total", None),
        with_code=model.trust_remote_code,
    )


def _needed(info: ModelInfo, names: set[str], model: ModelConfig) -> list[str]:
    """The files to download. Raises SourceError where the repository is not what can be hosted."""
    if pipeline.INDEX in names:
        return _needed_of_pipeline(info, names, model)
    if "config.json" not in names:
        raise SourceError(
            f"{model.source} holds no config.json and no {pipeline.INDEX}: no model of transformers or diffusers."
        )
    checkpoint = weights.wanted(names)
    if not checkpoint:
        raise SourceError(f"{model.source} holds neither model.safetensors nor pytorch_model.bin, whole or in shards.")
    patterns = (*_SMALL, "*.py") if model.trust_remote_code else _SMALL
    small = {name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)}
    return sorted(checkpoint | small)


def _needed_of_pipeline(info: ModelInfo, names: set[str], model: ModelConfig) -> list[str]:
    """Of each component that model_index.json names the weights once, and what is small."""
    index = Path(hf_hub_download(info.id, pipeline.INDEX, revision=info.sha))
    needed = {pipeline.INDEX}
    with weights.reading(index):
        components, heavy = pipeline.components(index.read_text()), pipeline.with_weights(index.read_text())
    for component in components:
        there = pipeline.inside(component, names)
        checkpoint = weights.wanted(there) if component in heavy else set()
        if component in heavy and not checkpoint:
            raise SourceError(
                f"{model.source} holds no weights for the component {component}: neither a model.safetensors nor a "
                "diffusion_pytorch_model.safetensors, whole or in shards, without a variant in its name."
            )
        small = {name for name in there if any(fnmatch(name, pattern) for pattern in _SMALL)}
        needed |= {f"{component}/{name}" for name in checkpoint | small}
    return sorted(needed)
