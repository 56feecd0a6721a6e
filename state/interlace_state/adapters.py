"""Which adapters a request may name, and whether one was made for a model: gateway and worker both ask."""

from pathlib import Path

from interlace.protocol.adapter import fits
from interlace.protocol.artifact import EDITS, AdapterRef, Artifact, ArtifactKind, Wanted
from interlace.protocol.errors import AdapterRefused
from interlace_state.models import ModelCard
from interlace_state.settings.adapters import AdaptersConfig

#: The kinds that a wrapper's models take; a pipeline's LoRA may also lie in PEFT's files.
TAKES: dict[str, ArtifactKind] = {"TransformersModel": "peft", "DiffusionModel": "diffusers-lora"}


def check_takes(wanted: Wanted, card: ModelCard) -> None:
    """Raises AdapterRefused where a model of this family takes no such adapter."""
    if TAKES.get(card.key.wrapper) != wanted.kind:
        field = "env.peft" if wanted.kind == "peft" else "env.lora"
        raise AdapterRefused(
            f"`{field}` names an adapter, and {card.key.repo_id} is a {card.key.wrapper}: it takes none."
        )


def check_policy(ref: AdapterRef, config: AdaptersConfig) -> None:
    """Raises AdapterRefused for a hub id or a path that the operator does not allow."""
    if ref.place == "hub" and not any(_matches(ref.text, pattern) for pattern in config.hub):
        allowed = ", ".join(config.hub) or "none"
        raise AdapterRefused(
            f"Adapter {ref.text}: this server fetches no such repository (allowed: {allowed}). Upload the adapter "
            "(`interlace.connect(URL).artifacts.upload(FOLDER)`), or ask the operator to allow it: `adapters.hub` in "
            "the configuration. A folder of that name on your machine is not on the server."
        )
    if ref.place == "folder" and not any(_is_below(Path(ref.text), folder) for folder in config.folders):
        raise AdapterRefused(
            f"Adapter {ref.text}: this server reads no such folder of its own. Upload the adapter "
            "(`interlace.connect(URL).artifacts.upload(FOLDER)`), or ask the operator to allow a folder around it: "
            "`adapters.folders` in the configuration."
        )


def check_base(artifact: Artifact, wanted: Wanted, card: ModelCard) -> None:
    """Raises AdapterRefused for an artifact of another kind, or that was made for another model."""
    if artifact.kind != wanted.kind and (wanted.kind, artifact.kind) != ("diffusers-lora", "peft"):
        raise AdapterRefused(f"Artifact {artifact.id} is a {artifact.kind}; expected a {wanted.kind} here.")
    _check_made_for(artifact, wanted.ref, card)


def check_edit(artifact: Artifact, ref: AdapterRef, card: ModelCard) -> None:
    """Raises AdapterRefused for an artifact that is no edit, or that was made for another model."""
    if artifact.kind not in EDITS:
        raise AdapterRefused(
            f"Artifact {artifact.id} is a {artifact.kind}; as an edit, expected one of: {', '.join(EDITS)}."
        )
    if card.key.wrapper != "TransformersModel":
        raise AdapterRefused(f"{card.key.repo_id} is a {card.key.wrapper}: it takes no edits.")
    _check_made_for(artifact, ref, card)


def _check_made_for(artifact: Artifact, ref: AdapterRef, card: ModelCard) -> None:
    base = artifact.base
    if base is None:
        return
    check_stated_base(ref, base.repo_id, card)
    if base.key == card.key.canonical and base.commit not in (None, card.commit):
        raise AdapterRefused(
            f"Artifact {artifact.id} was made for {base.repo_id} at {base.commit}; hosted here is {card.commit}."
        )


def check_stated_base(ref: AdapterRef, stated: str | None, card: ModelCard) -> None:
    """Raises AdapterRefused where an adapter says that its model is another."""
    if stated is not None and not fits(stated, card.key.repo_id):
        raise AdapterRefused(
            f"Adapter {ref.text} was made for {stated}, and this model is {card.key.repo_id}. If they are the same "
            f"weights, say so when you upload it: `artifacts.upload(FOLDER, model={card.key.repo_id!r})`."
        )


def _matches(repo_id: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.endswith("/*"):
        return repo_id.lower().startswith(pattern[:-1].lower())
    return repo_id.lower() == pattern.lower()


def _is_below(path: Path, folder: Path) -> bool:
    """As it is written; where links lead is for whoever opens it."""
    return ".." not in path.parts and path.is_relative_to(folder)
