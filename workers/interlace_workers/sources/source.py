"""Where a model's weights lie once they are on this machine."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from interlace.protocol.errors import InterlaceError
from interlace_workers.sources import pipeline

Say = Callable[[str], None]
"""Takes one line of progress for people."""

LONGEST_HUB_FILE = 64 << 20  # bytes; the largest tokenizer.json in common use has 33 MiB
_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "vocab.*",
    "merges.txt",
    "bpe.codes",
    "*.jinja",
    "chat_template*",
    "*processor_config.json",
)
#: Of a component of a pipeline.
_COMPONENT_FILES = (*_HUB_FILES, "scheduler_config.json", "*.model")


class SourceError(InterlaceError):
    """The model's weights cannot be had; the message says why and what to type instead."""

    code = "source_error"


@dataclass(frozen=True)
class Source:
    """A model on this machine."""

    #: A Hugging Face directory: config.json, tokenizer, weights; or a pipeline's, with a folder for each component.
    path: Path
    #: What clients write.
    repo_id: str
    revision: str
    #: 40 hex digits that change when the files change: the hub's commit where there is one.
    commit: str
    #: Bytes of the weight files.
    size_bytes: int
    #: Whether clients get the checkpoint's Python files too.
    with_code: bool = False

    @property
    def is_pipeline(self) -> bool:
        """Whether diffusers loads it, and not transformers."""
        return pipeline.is_pipeline(self.path)

    def hub_files(self) -> dict[str, Path]:
        """The files that a client without weights needs, by hub name; never weights, none over LONGEST_HUB_FILE.

        Raises ValueError for a damaged model_index.json, OSError.
        """
        if not self.is_pipeline:
            patterns = (*_HUB_FILES, "*.py") if self.with_code else _HUB_FILES
            return dict(_small(self.path, patterns))
        found = dict(_small(self.path, (pipeline.INDEX,)))
        for component, folder in pipeline.folders(self.path).items():
            if folder.is_dir():
                found |= {f"{component}/{name}": path for name, path in _small(folder, _COMPONENT_FILES)}
        return found


def _small(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        wanted = any(fnmatch(path.name, pattern) for pattern in patterns)
        if wanted and path.is_file() and path.stat().st_size <= LONGEST_HUB_FILE:
            yield path.name, path


def as_repo_name(text: str) -> str:
    """``text`` as the second half of a hub repo id."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", text)
    name = re.sub(r"\.{2,}", ".", name)[:80]
    return name.strip("-._").removesuffix(".git") or "model"
