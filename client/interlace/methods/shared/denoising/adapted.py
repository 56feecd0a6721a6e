"""An adapter of a tenant's on a method's pipeline, for as long as a block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interlace.methods.base import Report
from interlace.methods.shared.denoising import lora
from interlace.protocol.errors import InvalidArtifact


@contextmanager
def adapted(pipeline: Any, report: Report, ref: str | None, name: str) -> Iterator[lora.Layers | None]:
    """The layers of an artifact of kind `diffusers-lora`, off until `use`; None for no artifact.

    ``pipeline`` has a `unet`. Raises InvalidArtifact unless every key lands, and where it says that it was made on
    other weights.
    """
    if ref is None:
        yield None
        return
    adapter = report.open(ref, "diffusers-lora")
    said = adapter.config.get(lora.OURS)
    base = said.get("base_sha256") if isinstance(said, dict) else None
    if base is not None and base != lora.digest(pipeline.unet):
        raise InvalidArtifact(f"{ref} was made on other weights than this model's: its base is {str(base)[:16]}...")
    with lora.attached(pipeline.unet, {name: lora.wish_of(adapter.tensors, adapter.config)}) as layers:
        layers.load(name, adapter.tensors)
        yield layers
