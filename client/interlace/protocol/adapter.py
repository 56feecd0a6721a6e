"""What can be told of an adapter without loading it: its configuration and its tensors' names and shapes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from interlace.protocol.artifact import CONFIG, WEIGHTS
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.model import is_repo_id
from interlace.protocol.safetensors import Header

LONGEST_CONFIG = 1 << 20  # bytes
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_PREFIX = "base_model.model."  # PEFT names a saved adapter's tensors from its own wrapper
#: Types that work by wrapping the model's forward: they cannot be attached to its modules.
_WRAPPING = frozenset(
    {
        "PROMPT_TUNING",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "CPT",
        "CARTRIDGE",
        "ADAPTION_PROMPT",
        "XLORA",
        "SHADOW",
    }
)


@dataclass(frozen=True)
class Facts:
    """An adapter's own account of itself."""

    n_params: int
    #: The hub repo id of the model that it was made for; None where it does not say, or names a folder.
    base: str | None
    #: For the manifest.
    facts: dict[str, Any]


def check_peft(config: bytes, header: Header, most_rank: int) -> Facts:
    """Raises InvalidArtifact unless PEFT could attach this to some model; whether to a certain one, shows there."""
    said = parse_config(config)
    kind = said.get("peft_type")
    if not isinstance(kind, str) or not kind.isidentifier():
        raise InvalidArtifact(f"`peft_type` in {CONFIG} is {str(kind)[:32]!r}; expected e.g. 'LORA'.")
    if kind in _WRAPPING:
        raise InvalidArtifact(
            f"The adapter is of the type {kind}, which works by wrapping the model's forward and cannot be attached to "
            "its modules. Adapters that add layers (LoRA and its relatives) can."
        )
    if said.get("megatron_config") is not None:
        raise InvalidArtifact(f"`megatron_config` in {CONFIG} is set; it must be null here.")
    rank = _check_ranks(said, most_rank)
    check_tensors(header, WEIGHTS["peft"])
    strange = [name for name in header.tensors if not name.startswith(_PREFIX)]
    if strange:
        raise InvalidArtifact(
            f"{strange[0]} in {WEIGHTS['peft']} is no tensor of a PEFT adapter: their names begin with `{_PREFIX}`, as "
            "`save_pretrained` of a PeftModel writes them."
        )
    for name, tensor in header.tensors.items():
        if ".lora_A" in name and tensor.shape and tensor.shape[0] > most_rank:
            raise _over_rank(f"{name} has the rank {tensor.shape[0]:,}", most_rank)
    base = said.get("base_model_name_or_path")
    return Facts(header.n_params, base if is_repo_id(base) else None, {"peft_type": kind, "rank": rank})


def check_diffusers(header: Header) -> Facts:
    """Raises InvalidArtifact unless these can be a LoRA's tensors in one of the layouts that diffusers reads."""
    check_tensors(header, WEIGHTS["diffusers-lora"])
    strange = [name for name in header.tensors if "lora" not in name and not name.endswith((".alpha", ".dora_scale"))]
    if strange:
        raise InvalidArtifact(f"{strange[0]} in {WEIGHTS['diffusers-lora']} is no tensor of a LoRA.")
    return Facts(header.n_params, None, {"components": sorted({name.split(".")[0] for name in header.tensors})[:8]})


def parse_config(data: bytes) -> dict[str, Any]:
    """`adapter_config.json` as an object. Raises InvalidArtifact."""
    return parse_object(data, CONFIG, LONGEST_CONFIG)


def parse_object(data: bytes, name: str, longest: int) -> dict[str, Any]:
    """A JSON object. Raises InvalidArtifact, with ``name``."""
    if len(data) > longest:
        raise InvalidArtifact(f"{name} has {len(data):,} bytes; at most {longest:,} are read.")
    try:
        said = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f"{name} is no JSON: {error}.") from None
    if not isinstance(said, dict):
        raise InvalidArtifact(f"{name} is no JSON object.")
    return said


def fits(stated: str, repo_id: str) -> bool:
    """Whether two repo ids may mean one model: the hub has some under a name without an organisation, too."""
    one, other = stated.lower(), repo_id.lower()
    if "/" in one and "/" in other:
        return one == other
    return one.rpartition("/")[2] == other.rpartition("/")[2]


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _check_ranks(said: Mapping[str, Any], most: int) -> int | None:
    """The adapter's rank, where its type has one. Raises InvalidArtifact for one over the bound."""
    patterns = said.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise InvalidArtifact(f"`rank_pattern` in {CONFIG} must be ranks by module name.")
    rank = said.get("r")
    for name, value in (("r", rank), *((f"rank_pattern.{name[:64]}", value) for name, value in patterns.items())):
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise InvalidArtifact(f"`{name}` in {CONFIG} is {str(value)[:32]}; expected a whole number from 1 on.")
        if value > most:
            raise _over_rank(f"`{name}` in {CONFIG} is {value:,}", most)
    return rank


def _over_rank(what: str, most: int) -> InvalidArtifact:
    return InvalidArtifact(
        f"{what}, over the limit of {most:,}. The operator can raise it: `adapters.max_rank` in the configuration."
    )


def check_tensors(header: Header, name: str) -> None:
    if not header.tensors:
        raise InvalidArtifact(f"{name} holds no tensor.")
    for key, tensor in header.tensors.items():
        if tensor.dtype not in _FLOATS:
            raise InvalidArtifact(
                f"{key} in {name} is of the type {tensor.dtype}; an adapter is of {', '.join(sorted(_FLOATS))}."
            )
        if not tensor.numbers:
            raise InvalidArtifact(f"{key} in {name} has no numbers: its shape is {list(tensor.shape)}.")
