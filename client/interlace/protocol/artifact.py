"""What labs make and keep: an artifact is a few files that never change, and a manifest that says what they are.

``artifact:ID`` names one, ``artifact:ID@HASH`` the same and its contents: the id is never given to another.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from interlace.protocol.errors import InvalidRequest
from interlace.protocol.ids import ARTIFACT_ID
from interlace.protocol.lake import Measured, Visibility
from interlace.protocol.model import is_repo_id

ArtifactKind = Literal[
    "peft", "diffusers-lora", "edit", "sae", "probe", "circuit", "data", "texts", "images", "weights", "sketch"
]
KIND: TypeAdapter[ArtifactKind] = TypeAdapter(ArtifactKind)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Layout:
    """How a kind of artifact lies in files; None for a part that the kind does not have."""

    #: The safetensors file.
    tensors: str | None
    #: The JSON file, an object.
    config: str | None


LAYOUTS = {
    "peft": Layout("adapter_model.safetensors", "adapter_config.json"),
    "diffusers-lora": Layout("pytorch_lora_weights.safetensors", None),
    # Additions to modules' outputs, such as a rank-one edit of ROME's.
    "edit": Layout("edit.safetensors", "edit_config.json"),
    # As SAELens has them.
    "sae": Layout("sae_weights.safetensors", "cfg.json"),
    "probe": Layout("probe.safetensors", "probe_config.json"),
    # Nodes of spliced dictionaries and their effects, edges between them.
    "circuit": Layout("circuit.safetensors", "circuit.json"),
    # What a method measures or is measured by: labels, statistics, effects.
    "data": Layout("data.safetensors", "data.json"),
    # `{"texts": [...]}`.
    "texts": Layout(None, "texts.json"),
    # Pixels, never an image's file, with what each shows and by what right they are used.
    "images": Layout("images.safetensors", "images.json"),
    # A whole checkpoint in one file, as `save_pretrained` writes a small one.
    "weights": Layout("model.safetensors", "config.json"),
    # What stands for a model's weights where they are compared.
    "sketch": Layout("sketch.safetensors", "sketch.json"),
}
#: The files of each kind: those that must be there, and those that may.
FILES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    kind: (frozenset(name for name in (layout.tensors, layout.config) if name is not None), frozenset())
    for kind, layout in LAYOUTS.items()
}
#: The file of a kind that holds its tensors.
WEIGHTS = {kind: layout.tensors for kind, layout in LAYOUTS.items() if layout.tensors is not None}
#: Kinds that can be on while a model runs, as additions to what its modules give.
EDITS = ("edit", "peft")
MOST_EDITS = 32
CONFIG = "adapter_config.json"
LONGEST_NAME = 256  # characters of what names an adapter
_ARTIFACT = re.compile(rf"artifact:({ARTIFACT_ID})(?:@([0-9a-f]{{8,64}}))?")


class ArtifactFile(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    #: SHA-256, 64 hex digits.
    sha256: str


class Base(BaseModel):
    """The model that an artifact was made for."""

    model_config = ConfigDict(frozen=True)

    repo_id: str
    #: The canonical key of the hosted model, where it was hosted when the artifact came.
    key: str | None = None
    #: Its commit then.
    commit: str | None = None


class Lineage(BaseModel):
    """What has made an artifact."""

    model_config = ConfigDict(frozen=True)

    job: str
    #: `NAME@VERSION`.
    method: str
    #: The model's canonical key, and the commit of its weights.
    model: str
    commit: str
    #: Of the parameters with every default filled in.
    params_sha256: str
    #: Artifacts that the job was given, edits too: `artifact:ID@HASH`.
    parents: tuple[str, ...] = ()
    #: The parameters themselves; None where they are long: then their digest is all that is kept.
    params: dict[str, Any] | None = None
    seed: int | None = None
    #: Those of `parents` that were on while it ran, as the request named them.
    edits: tuple[str, ...] = ()
    #: Artifact or field -> SHA-256 of what was read of it.
    data_sha256: dict[str, str] = Field(default_factory=dict)
    #: What the job measured.
    metrics: tuple[Measured, ...] = ()
    #: Python's and the libraries' versions, where it ran.
    libraries: dict[str, str] = Field(default_factory=dict)
    dtype: str = ""
    device: str = ""


class Artifact(BaseModel):
    """The manifest. It lies beside the files, and what is known of the artifact can be had from it alone."""

    model_config = ConfigDict(frozen=True)

    format: Literal[2] = 2
    id: str = Field(pattern=f"^{ARTIFACT_ID}$")
    #: Of the kind and all files: SHA-256, 64 hex digits.
    hash: str
    kind: ArtifactKind
    #: For people.
    name: str = ""
    tenant: str
    #: The id of the API key that it came with; None where none is needed.
    creator: str | None = None
    #: Unix time.
    created: float
    base: Base | None = None
    files: tuple[ArtifactFile, ...]
    #: Numbers in its tensors.
    n_params: int
    #: What is told of an adapter of this kind, such as `peft_type` and `rank`.
    facts: dict[str, Any] = Field(default_factory=dict)
    #: None for what was uploaded.
    lineage: Lineage | None = None
    #: `private`: for the key that it came with; `tenant`: for the tenant's keys; `public`: for all tenants to read.
    visibility: Visibility = "tenant"
    #: What its owner says of it; it may change, as the visibility may, and nothing else.
    declared: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _first_format(cls, data: Any) -> Any:
        """Manifests of format 1 knew one visibility, by another name."""
        if isinstance(data, dict) and data.get("format") == 1:
            return {**data, "format": 2, "visibility": "tenant"}
        return data

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def ref(self) -> str:
        """What names it and its contents in a request."""
        return f"artifact:{self.id}@{self.hash}"


class ArtifactList(BaseModel):
    """The newest first."""

    model_config = ConfigDict(frozen=True)

    artifacts: tuple[Artifact, ...]


def content_hash(kind: str, files: tuple[ArtifactFile, ...]) -> str:
    """Equal for equal contents of one kind, whoever owns them and whatever they are called."""
    lines = sorted(f"{file.sha256} {file.name}\n" for file in files)
    return hashlib.sha256("".join([f"{kind}\n", *lines]).encode()).hexdigest()


@dataclass(frozen=True)
class AdapterRef:
    """What a request calls an adapter by."""

    text: str
    place: Literal["artifact", "folder", "hub"]
    #: Of an artifact.
    id: str = ""
    #: The beginning of its hash; empty where any will do.
    hash: str = ""

    @classmethod
    def parse(cls, text: object, field: str) -> "AdapterRef":
        """Raises InvalidRequest, which says what would be right."""
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST_NAME or not text.isprintable():
            raise InvalidRequest(f"`{field}` is {str(text)[:64]!r}; expected an adapter's name, as a text.")
        if match := _ARTIFACT.fullmatch(text):
            return cls(text, "artifact", match[1], match[2] or "")
        if text.startswith("artifact:"):
            raise InvalidRequest(f"`{field}` is {text[:96]!r}; expected artifact:ID or artifact:ID@HASH (hex digits).")
        if text.startswith("/"):
            return cls(text, "folder")
        if is_repo_id(text):
            return cls(text, "hub")
        raise InvalidRequest(
            f"`{field}` is {text[:96]!r}, which names no adapter here. Expected artifact:ID of one that was uploaded "
            "(`interlace.connect(URL).artifacts.upload(FOLDER)`), a hub repo id, or the absolute path of a folder on "
            "the server."
        )


@dataclass(frozen=True)
class Wanted:
    """An adapter that a request asks for."""

    ref: AdapterRef
    kind: ArtifactKind
    weight: float = 1.0
    #: Of a pipeline's LoRA: the timesteps at which it is on, both in; None: no bound.
    t_min: float | None = None
    t_max: float | None = None


def wanted(env: dict[str, Any]) -> tuple[Wanted, ...]:
    """The adapters that a request's `env` names. Raises InvalidRequest."""
    found = []
    if env.get("peft") is not None:
        found.append(Wanted(AdapterRef.parse(env["peft"], "env.peft"), "peft"))
    for number, one in enumerate(_listed(env.get("lora"))):
        field = f"env.lora[{number}]"
        if not isinstance(one, dict) or not {"adapter"} <= one.keys() <= {"adapter", "weight", "t_min", "t_max"}:
            raise InvalidRequest(
                f'`{field}` is {str(one)[:64]}; expected {{"adapter": NAME, "weight": 1.0, "t_min": 0, "t_max": 800}}, '
                "of which all but the first may be left out."
            )
        weight = _number(one.get("weight", 1.0), f"{field}.weight", -_MOST_WEIGHT, _MOST_WEIGHT)
        bounds = [
            None if one.get(name) is None else _number(one[name], f"{field}.{name}", 0.0, _MOST_T)
            for name in ("t_min", "t_max")
        ]
        found.append(Wanted(AdapterRef.parse(one["adapter"], f"{field}.adapter"), "diffusers-lora", weight, *bounds))
    return tuple(found)


def _number(value: object, field: str, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(f"`{field}` is {str(value)[:32]}; expected a number from {least:g} to {most:g}.")
    return float(value)


def read_of(env: dict[str, Any]) -> tuple[AdapterRef, ...]:
    """The artifacts that a request's `env.artifacts` names, for its block to read. Raises InvalidRequest."""
    named = env.get("artifacts")
    if named is None:
        return ()
    if not isinstance(named, list) or len(named) > MOST_EDITS:
        raise InvalidRequest(f"`env.artifacts` must be a list of up to {MOST_EDITS} artifacts.")
    found = tuple(AdapterRef.parse(one, f"env.artifacts[{number}]") for number, one in enumerate(named))
    for number, ref in enumerate(found):
        if ref.place != "artifact":
            raise InvalidRequest(f"`env.artifacts[{number}]` is {ref.text[:96]!r}; expected artifact:ID.")
    return found


def edits_of(env: dict[str, Any]) -> tuple[AdapterRef, ...]:
    """The artifacts that a request's `env.edits` names. Raises InvalidRequest."""
    edits = env.get("edits")
    if edits is None:
        return ()
    if not isinstance(edits, list) or len(edits) > MOST_EDITS:
        raise InvalidRequest(f"`env.edits` must be a list of up to {MOST_EDITS} artifacts.")
    return tuple(edit_ref(one, f"env.edits[{number}]") for number, one in enumerate(edits))


def edit_ref(text: object, field: str) -> AdapterRef:
    """The artifact that an edit is. Raises InvalidRequest for what is none."""
    ref = AdapterRef.parse(text, field)
    if ref.place != "artifact":
        raise InvalidRequest(f"`{field}` is {ref.text[:96]!r}; expected artifact:ID of an edit or a PEFT adapter.")
    return ref


_MOST_WEIGHT = 1000.0
#: A timestep; schedulers count to 1,000.
_MOST_T = 100_000.0
_MOST_LORAS = 8


def _listed(loras: object) -> list[Any]:
    if loras is None:
        return []
    if not isinstance(loras, list) or len(loras) > _MOST_LORAS:
        raise InvalidRequest(f"`env.lora` must be a list of up to {_MOST_LORAS} adapters.")
    return loras
