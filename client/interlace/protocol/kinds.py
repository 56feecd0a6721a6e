"""What the files of each kind of artifact must be, as far as it shows without a tensor library."""

import re
from collections.abc import Mapping
from typing import Any

from interlace.protocol.adapter import Facts, check_diffusers, check_peft, check_tensors, parse_object
from interlace.protocol.artifact import LAYOUTS
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.safetensors import Header

#: Bytes of a kind's configuration, where it may be more than of an adapter's.
LONGEST_CONFIGS = {"texts": 32 << 20, "data": 32 << 20, "probe": 4 << 20, "images": 32 << 20, "sketch": 8 << 20}
_LONGEST = 1 << 20  # bytes
_MOST_TEXTS = 1_000_000
_MOST_EDITS = 4096
#: Of one artifact, and pixels of a side: more go into several artifacts, or are made smaller.
MOST_IMAGES = 100_000
LONGEST_SIDE = 4096
LONGEST_CAPTION = 4000  # characters
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Of a configuration, what is told in the manifest where it is there and short.
_TOLD = frozenset({"architecture", "d_in", "d_sae", "hook_name", "layer", "method", "model_type", "site", "title"})
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
    if kind == "images":
        return _check_images(said, header)
    if kind == "edit":
        _check_edit(said)
    if kind == "weights" and not isinstance(said.get("model_type"), str):
        raise InvalidArtifact("config.json of a checkpoint must have `model_type`, as `save_pretrained` writes it.")
    if kind not in ("data", "weights"):  # labels and buffers are whole numbers, and a table may have no tensor at all
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


def _check_texts(said: Mapping[str, Any]) -> Facts:
    texts = said.get("texts")
    if said.keys() != {"texts"} or not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise InvalidArtifact('texts.json must be {"texts": [...]}, a list of texts and nothing else.')
    if not 0 < len(texts) <= _MOST_TEXTS:
        raise InvalidArtifact(f"texts.json holds {len(texts):,} texts; expected 1 to {_MOST_TEXTS:,}.")
    return Facts(0, None, {"texts": len(texts), "characters": sum(map(len, texts))})


def _check_images(said: Mapping[str, Any], header: Header) -> Facts:
    pixels = header.tensors.get("images")
    if header.tensors.keys() != {"images"} or pixels is None or pixels.dtype != "U8":
        raise InvalidArtifact("images.safetensors must have one tensor, `images`, of the type U8.")
    shape = pixels.shape
    if len(shape) != 4 or shape[3] != 3 or not pixels.numbers:
        raise InvalidArtifact(f"`images` has the shape {list(shape)}; expected [images, height, width, 3].")
    n, height, width, _ = shape
    if n > MOST_IMAGES or max(height, width) > LONGEST_SIDE:
        raise InvalidArtifact(
            f"{n:,} images of {height:,} x {width:,}; at most {MOST_IMAGES:,} of {LONGEST_SIDE:,} pixels a side "
            "make an artifact. Keep them in several, or smaller."
        )
    if said.get("format") != 1 or not {"captions", "rights", "sha256"} <= said.keys():
        raise InvalidArtifact("images.json must have `format` 1, `captions`, `rights` and `sha256`.")
    for name, longest in (("captions", LONGEST_CAPTION), ("sha256", 64)):
        listed = said[name]
        if not isinstance(listed, list) or len(listed) != n or not all(_is_text(one, longest) for one in listed):
            raise InvalidArtifact(f"`{name}` in images.json must be {n:,} texts of up to {longest:,} characters.")
    if not all(_SHA256.fullmatch(one) for one in said["sha256"]):
        raise InvalidArtifact("`sha256` in images.json must be 64 hex digits for each image, of its pixels.")
    rights = said["rights"]
    if not _is_text(rights, LONGEST_CAPTION) or not rights.strip():
        raise InvalidArtifact("`rights` in images.json must say by what right the images are used.")
    return Facts(0, None, {"images": n, "height": height, "width": width, "rights": rights[:_LONGEST_TOLD]})


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest


def _short(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _LONGEST_TOLD)
