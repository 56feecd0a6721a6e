"""Hugging Face's layouts: what a folder holds, and a model card of what a lake knows."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from interlace.protocol.artifact import LAYOUTS, Artifact, ArtifactKind
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.lake import Card, Citation

#: Kinds in the order in which they are looked for: a folder of an adapter may have the model's `config.json`, too.
_LOOKED_FOR: tuple[ArtifactKind, ...] = ("peft", "diffusers-lora", "sae", "edit", "probe", "sketch", "weights")
#: Fields of a README's head that are declared of an artifact, texts or lists of texts.
_DECLARED = ("base_model", "datasets", "language", "library_name", "license", "pipeline_tag", "tags")
_LIBRARIES = {"peft": "peft", "diffusers-lora": "diffusers", "sae": "sae_lens", "weights": "transformers"}
_LONGEST = 2000  # characters of what is declared of a field
#: Says which of several files has which tensor of a checkpoint.
_SHARDS = "model.safetensors.index.json"
_WHOLE = LAYOUTS["weights"]


def kind_of(folder: Path) -> ArtifactKind:
    """Raises InvalidArtifact, which says what would be right."""
    for kind in _LOOKED_FOR:
        layout = LAYOUTS[kind]
        if all((folder / name).is_file() for name in (layout.tensors, layout.config) if name is not None):
            return kind
    if (folder / _SHARDS).is_file() and (folder / str(_WHOLE.config)).is_file():
        return "weights"
    layouts = "; ".join(
        " and ".join(name for name in (LAYOUTS[kind].tensors, LAYOUTS[kind].config) if name) for kind in _LOOKED_FOR
    )
    raise InvalidArtifact(f"{folder} is no folder that the lake takes in; expected one of: {layouts}.")


@contextmanager
def in_one_file(folder: Path) -> Iterator[Path]:
    """The folder; of a checkpoint in several files one for the time being, with `model.safetensors` and `config.json`.

    Takes the checkpoint's size of memory, and of room for temporary files. Raises InvalidArtifact for files that are
    not what their index says.
    """
    if (folder / str(_WHOLE.tensors)).is_file() or not (folder / _SHARDS).is_file():
        yield folder
        return
    files = import_module("safetensors.torch")
    tensors: dict[str, Any] = {}
    try:
        places = dict(json.loads((folder / _SHARDS).read_text())["weight_map"])
        for shard in sorted(set(places.values())):
            if Path(shard).name != shard:
                raise InvalidArtifact(f"{_SHARDS} of {folder} names {shard[:80]!r}, which is no file beside it.")
            tensors |= files.load_file(folder / shard)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise InvalidArtifact(f"{_SHARDS} of {folder} does not lead to its tensors: {error!r}") from None
    if tensors.keys() != places.keys():
        strange = sorted(tensors.keys() ^ places.keys())[0]
        raise InvalidArtifact(f"{strange} is not where {_SHARDS} of {folder} says.")
    with tempfile.TemporaryDirectory(prefix="interlace-") as name:
        files.save_file(tensors, Path(name) / str(_WHOLE.tensors), {"format": "pt"})
        shutil.copy(folder / str(_WHOLE.config), name)
        yield Path(name)


def source_of(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """A hub repository's folder on this machine, fetched where it is not here, and its commit."""
    found = import_module("huggingface_hub").snapshot_download(
        repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors", "README.md"]
    )
    return Path(found), Path(found).name


def declared_in(folder: Path) -> dict[str, str]:
    """What the head of a folder's README.md says, as texts; nothing where there is no head that can be read."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    text = readme.read_text(errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        said = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: text for name in _DECLARED if (text := _text(said.get(name)))}


def card_text(card: Card, artifact: Artifact, citation: Citation) -> str:
    """A README.md: a head that the hub reads, and a table of statements, each with who says it."""
    head: dict[str, Any] = {name: artifact.declared[name] for name in _DECLARED if name in artifact.declared}
    head["library_name"] = head.get("library_name") or _LIBRARIES.get(artifact.kind, "interlace")
    if artifact.base is not None:
        head.setdefault("base_model", artifact.base.repo_id)
    lines = ["---", yaml.safe_dump(head, sort_keys=True).rstrip(), "---", "", f"# {card.entry.name}", ""]
    lines += [f"`{card.entry.ref}`", "", "| what | value | says who | evidence |", "|---|---|---|---|"]
    for one in card.statements:
        stale = " (of other contents)" if one.stale else ""
        lines.append(f"| {_cell(one.field)} | {_cell(one.value)} | {one.source}{stale} | {_cell(one.evidence)} |")
    if card.unknown:
        lines += ["", f"Unknown: {', '.join(card.unknown)}."]
    lines += ["", "## Cite", "", "```bibtex", citation.bibtex.rstrip(), "```"]
    if citation.call is not None:
        lines += ["", "## Make it again", "", "```python", citation.call.rstrip(), "```"]
    lines += [f"\n{one}" for one in citation.caveats]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))[:_LONGEST]
    return "" if value is None or isinstance(value, Mapping) else str(value)[:_LONGEST]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    short = text if len(text) <= 300 else f"{text[:300]}..."
    return short.replace("|", "\\|").replace("\n", " ")
