"""A Hugging Face directory on this machine."""

import hashlib
from pathlib import Path

from interlace_state.config import ModelConfig
from interlace_workers.sources import weights
from interlace_workers.sources.source import Source, SourceError, as_repo_name


def is_local(source: str) -> bool:
    return source in (".", "..", "~") or source.startswith(("/", "./", "../", "~/"))


def name_of(source: str) -> str:
    return f"local/{as_repo_name(_folder(source).name)}"


def resolve(model: ModelConfig) -> Source:
    """The directory, checked. Raises SourceError."""
    folder = _folder(model.source)
    with weights.reading(folder):
        return _checked(folder, model)


def _checked(folder: Path, model: ModelConfig) -> Source:
    if not folder.is_dir():
        raise SourceError(f"There is no folder {folder}. `--model` takes a folder with config.json and weights.")
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} has no config.json, so it is not a model that `save_pretrained` wrote. "
            "Give the folder that holds config.json, the tokenizer and the weights."
        )
    if not weights.files(folder):
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


def _folder(source: str) -> Path:
    return Path(source).expanduser().resolve()


def _commit(folder: Path) -> str:
    """40 hex digits over names, sizes and times: reading gigabytes of weights to hash them would take a minute."""
    digest = hashlib.sha1((folder / "config.json").read_bytes(), usedforsecurity=False)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
