"""What the files of each kind of artifact must be, as far as it shows without a tensor library."""

from collections.abc import Mapping
from typing import Any

from interlace.protocol.adapter import Facts, check_diffusers, check_peft, check_tensors, parse_object
from interlace.protocol.artifact import LAYOUTS
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.safetensors import Header

#: Bytes of a kind's configuration, where it may be more than of an adapter's.
LONGEST_CONFIGS = {"texts": 32 << 20, "data": 32 << 20, "probe": 4 << 20}
_LONGEST = 1 << 20  # bytes
_MOST_TEXTS = 1_000_000
_MOST_EDITS = 4096
_MOST_SITES = 4096
#: The tensors of a circuit: types, and columns of those that have some. A node is its site's number in `sites`, its
#: token (-1: all) and its feature (-1: the error); an edge goes from a node to a node (-1: the metric).
CIRCUIT = {"nodes": ("I32", 3), "effects": ("F32", 0), "edges": ("I32", 2), "weights": ("F32", 0)}
#: Of a configuration, what is told in the manifest where it is there and short.
_TOLD = frozenset({"architecture", "d_in", "d_sae", "hook_name", "layer", "method", "metric", "site", "title"})
_LONGEST_TOLD = 128  # characters


def longest_config(kind: str) -> int:
    """Bytes of a configuration of this kind."""
    return LONGEST_CONFIGS.get(kind, _LONGEST)


def check(kind: str, config: bytes, header: Header | None, max_rank: int) -> Facts:
    """Raises InvalidArtifact unless these are the contents of such an artifact; ``config`` is empty for none."""
    if kind == "peft":
        assert header is not None
        return check_peft(config, header, max_rank)
    if kind == "diffusers-lora":
        assert header is not None
        return check_diffusers(header)
    layout = LAYOUTS[kind]
    said = parse_object(config, layout.config or "", longest_config(kind))
    if kind == "texts":
        return _check_texts(said)
    assert header is not None
    assert layout.tensors is not None
    if kind == "edit":
        _check_edit(said)
    if kind == "circuit":
        _check_circuit(said, header)
    elif kind != "data":  # labels are whole numbers, and a table may have no tensor at all
        check_tensors(header, layout.tensors)
    return Facts(
        header.n_params, None, {name: said[name] for name in sorted(_TOLD & said.keys()) if _short(said[name])}
    )


def _check_edit(said: Mapping[str, Any]) -> None:
    edits = said.get("edits")
    if said.get("format") != 1 or not isinstance(said.get("model_type"), str):
        raise InvalidArtifact("edit_config.json must have `format` 1 and the `model_type` that it is for.")
    if not isinstance(edits, list) or not 0 < len(edits) <= _MOST_EDITS:
        raise InvalidArtifact(f"`edits` in edit_config.json must be a list of 1 to {_MOST_EDITS:,}.")


def _check_circuit(said: Mapping[str, Any], header: Header) -> None:
    sites = said.get("sites")
    if said.get("format") != 1 or not isinstance(said.get("model_type"), str):
        raise InvalidArtifact("circuit.json must have `format` 1 and the `model_type` that it is of.")
    if not isinstance(sites, list) or not 0 < len(sites) <= _MOST_SITES:
        raise InvalidArtifact(f"`sites` in circuit.json must be a list of 1 to {_MOST_SITES}.")
    if header.tensors.keys() != CIRCUIT.keys():
        raise InvalidArtifact(f"A circuit has the tensors {', '.join(CIRCUIT)}, and nothing else.")
    for name, (dtype, width) in CIRCUIT.items():
        found = header.tensors[name]
        if found.dtype != dtype or len(found.shape) != (2 if width else 1) or (width and found.shape[1] != width):
            raise InvalidArtifact(f"{name} in circuit.safetensors must be {dtype} [n{f', {width}' if width else ''}].")
    for many, each in (("nodes", "effects"), ("edges", "weights")):
        if header.tensors[many].shape[0] != header.tensors[each].shape[0]:
            raise InvalidArtifact(f"{many} and {each} in circuit.safetensors must be of one number.")


def _check_texts(said: Mapping[str, Any]) -> Facts:
    texts = said.get("texts")
    if said.keys() != {"texts"} or not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise InvalidArtifact('texts.json must be {"texts": [...]}, a list of texts and nothing else.')
    if not 0 < len(texts) <= _MOST_TEXTS:
        raise InvalidArtifact(f"texts.json holds {len(texts):,} texts; expected 1 to {_MOST_TEXTS:,}.")
    return Facts(0, None, {"texts": len(texts), "characters": sum(map(len, texts))})


def _short(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _LONGEST_TOLD)
