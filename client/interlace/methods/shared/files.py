"""Artifacts as files and back: what a kind's layout says, in safetensors and JSON."""

import io
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from interlace.methods.base import Opened
from interlace.protocol.adapter import parse_object
from interlace.protocol.artifact import LAYOUTS
from interlace.protocol.errors import InvalidArtifact
from interlace.protocol.kinds import longest_config
from interlace.protocol.safetensors import read_header


def laid_out(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, bytes]:
    """An artifact's files. Raises InvalidArtifact for a kind that there is not, or a part that it does not have."""
    layout = LAYOUTS.get(kind)
    if layout is None:
        raise InvalidArtifact(f"There is no kind of artifact {kind!r}; there are: {', '.join(LAYOUTS)}.")
    files = {}
    if layout.tensors is not None:
        # A kind without a file for its configuration has it in the tensors' own file.
        files[layout.tensors] = packed(tensors, _said(config) if layout.config is None else None)
    elif tensors:
        raise InvalidArtifact(f"An artifact of the kind {kind} has no tensors.")
    if layout.config is not None:
        files[layout.config] = json.dumps(dict(config), indent=1, allow_nan=False).encode()
        parse_object(files[layout.config], layout.config, longest_config(kind))
    return files


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as safetensors, which wants each in memory of its own: what shares it is copied."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() > whole.nbytes:
            whole = whole.clone()
        seen.add(whole.untyped_storage().data_ptr())
        plain[name] = whole
    data: bytes = save(plain, dict(metadata) if metadata else None)
    return data


def _said(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as a safetensors file's metadata: texts by name; what is no text is written as JSON."""
    said = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True, allow_nan=False)
        for name, value in config.items()
    }
    return {"format": "pt", **said} if said else {}


def said_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The way back: objects out of a safetensors file's metadata; what is none stays a text."""
    found: dict[str, Any] = {}
    for name, text in metadata.items():
        try:
            found[name] = parse_object(text.encode(), name, longest_config("")) if text.startswith("{") else text
        except InvalidArtifact:
            found[name] = text
    return found


def opened(kind: str, files: Mapping[str, bytes], ref: str) -> Opened:
    """An artifact's files, read."""
    layout = LAYOUTS[kind]
    tensors = load(files[layout.tensors]) if layout.tensors else {}
    if layout.config:
        config = json.loads(files[layout.config])
    else:
        data = files[layout.tensors or ""]
        config = said_of(read_header(io.BytesIO(data), len(data), layout.tensors or "").metadata)
    return Opened(kind, tensors, config, ref)
