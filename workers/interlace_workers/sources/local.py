"""A Hugging Face directory on this machine."""

import hashlib
from pathlib import Path

from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import pipeline, weights
from interlace_workers.sources.source import Source, SourceError, as_repo_name


def is_local(source: str) -> bool:
    return source in (".", "..", "~") or source.startswith(("/", "./", "../", "~/"))


def name_of(source: str) -> str:
    return f"local/{as_repo_name(folder_of(source).name)}"


def resolve(model: ModelConfig) -> Source:
    """The directory, checked. Raises SourceError."""
    folder = folder_of(model.source)
    with weights.reading(folder):
        return _checked(folder, model)


def _checked(folder: Path, model: ModelConfig) -> Source:
    if not folder.is_dir():
        raise SourceError(
            f"There is no folder {folder}. `--model` takes a folder with config.json and weights, or a pipeline's."
        )
    if pipeline.is_pipeline(folder):
        if missing := weights.missing(folder):
            raise SourceError(
                f"{folder} has a {pipeline.INDEX}, but no complete diffusion_pytorch_model.safetensors or "
                f"model.safetensors (or their shards) for: {', '.join(missing)}."
            )
    elif not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} has no config.json and no {pipeline.INDEX}, so it is not a model that `save_pretrained` wrote. "
            "Give the folder that holds config.json, the tokenizer and the weights, or that of a diffusers pipeline."
        )
    elif not weights.files(folder):
        raise SourceError(
            f"{folder} has a config.json, but no complete model.safetensors or pytorch_model.bin (or their shards)."
        )
    return Source(
        path=folder,
        repo_id=model.repo_id or name_of(model.source),
        revision=model.revision,
        commit=_commit(folder),
        size_bytes=weights.size(folder),
        with_code=model.trust_remote_code,
    )


def folder_of(source: str) -> Path:
    return Path(source).expanduser().resolve()


def _commit(folder: Path) -> str:
    """40 hex digits over names, sizes and times: reading gigabytes of weights to hash them would take a minute."""
    own, folders = "config.json", [folder]
    if pipeline.is_pipeline(folder):
        own, folders = pipeline.INDEX, [folder, *pipeline.folders(folder).values()]
    digest = hashlib.sha1((folder / own).read_bytes(), usedforsecurity=False)
    for path in sorted(path for one in folders if one.is_dir() for path in one.iterdir()):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
