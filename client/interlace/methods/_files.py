"""Artifacts as files and back: what a kind's layout says, in safetensors and JSON."""

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


def laid_out(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, bytes]:
    """An artifact's files. Raises InvalidArtifact for a kind that there is not, or a part that it does not have."""
    layout = LAYOUTS.get(kind)
    if layout is None:
        raise InvalidArtifact(f"There is no kind of artifact {kind!r}; there are: {', '.join(LAYOUTS)}.")
    files = {}
    if layout.tensors is not None:
        files[layout.tensors] = packed(tensors)
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


def opened(kind: str, files: Mapping[str, bytes], ref: str) -> Opened:
    """An artifact's files, read."""
    layout = LAYOUTS[kind]
    tensors = load(files[layout.tensors]) if layout.tensors else {}
    config = json.loads(files[layout.config]) if layout.config else {}
    return Opened(kind, tensors, config, ref)
