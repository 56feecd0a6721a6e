"""Load LoRAs into this process's own copy of a diffusers pipeline, from tensors that are in memory.

As `pipeline.load_lora_weights(FOLDER)` does, each under a name of its own, then `set_adapters` with their weights.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from interlace.protocol.errors import AdapterRefused
from interlace_workers.order import Adapter

#: Under this name in a file's metadata, `save_lora_weights` keeps what it must know of ranks and scales.
_METADATA = "lora_adapter_metadata"
_LONGEST = 1000  # characters of a reason
_SHOWN = 3  # of names that have no place


@dataclass(frozen=True)
class Lora:
    """One LoRA, read."""

    adapter: Adapter
    tensors: Mapping[str, torch.Tensor]
    #: Of its file.
    metadata: Mapping[str, str]


def load(model: Any, loras: Sequence[Lora]) -> None:
    """Load LoRAs into a nnsight DiffusionModel. Raises AdapterRefused unless every tensor has its place."""
    if not loras:
        return
    pipeline = model.pipeline
    known = set(model._module.modules())
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        try:
            with _quiet(), _with_metadata(pipeline, _metadata(lora)):
                pipeline.load_lora_weights(dict(lora.tensors), adapter_name=name)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise AdapterRefused(
                f"Adapter {lora.adapter.name} does not fit this pipeline ({type(pipeline).__name__}): "
                f"{str(error)[:_LONGEST]}"
            ) from None
        _check(pipeline, name, lora)
    pipeline.set_adapters(names, [lora.adapter.weight for lora in loras])
    for one in model._module.modules():
        if one not in known:
            one.train(model._module.training)
    model._update(model._module)


def unload(model: Any) -> None:
    """Take every LoRA out of a nnsight DiffusionModel; nothing else has any."""
    pipeline: Any = getattr(model, "pipeline", None)
    if hasattr(pipeline, "unload_lora_weights") and pipeline.get_list_adapters():
        pipeline.unload_lora_weights()
        model._update(model._module)


def out_of_memory(error: Exception) -> bool:
    """Whether the job's limit was met, and not the adapter's fault."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _check(pipeline: Any, name: str, lora: Lora) -> None:
    """Raises AdapterRefused where a tensor of the file is nowhere in the pipeline: diffusers would only warn."""
    landed = {
        f"{component}.{key.replace(f'.{name}.', '.')}": parameter.numel()
        for component, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for key, parameter in module.named_parameters()
        if f".{name}." in key
    }
    given = {key: one.numel() for key, one in lora.tensors.items() if not key.endswith(".alpha")}
    if all(".lora_A." in key or ".lora_B." in key for key in given):  # of PEFT's layout: the names are the same
        astray, missing = sorted(given.keys() - landed.keys()), sorted(landed.keys() - given.keys())
    else:  # diffusers has renamed them, and may have split some
        astray = sorted(given) if sum(landed.values()) < sum(given.values()) else []
        missing = []
    if astray or missing:
        some = ", ".join((astray or missing)[:_SHOWN])
        what = "has weights without a place in" if astray else "lacks weights for"
        raise AdapterRefused(
            f"Adapter {lora.adapter.name} {what} this pipeline ({type(pipeline).__name__}): {some}. Was it made for "
            "another model?"
        )


def _metadata(lora: Lora) -> dict[str, Any] | None:
    """Raises AdapterRefused for metadata that is no JSON."""
    if _METADATA not in lora.metadata:
        return None
    try:
        found = json.loads(lora.metadata[_METADATA])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AdapterRefused(f"`{_METADATA}` of adapter {lora.adapter.name} is no JSON object.")
    return found


@contextmanager
def _with_metadata(pipeline: Any, metadata: dict[str, Any] | None) -> Iterator[None]:
    """Have a pipeline take metadata beside tensors in memory: it looks for some in files only."""
    if metadata is None:
        yield
        return
    read = pipeline.lora_state_dict

    def lora_state_dict(*args: Any, **options: Any) -> Any:
        *found, _ = read(*args, **options)
        return *found, metadata

    pipeline.lora_state_dict = lora_state_dict
    try:
        yield
    finally:
        del pipeline.lora_state_dict


@contextmanager
def _quiet() -> Iterator[None]:
    """No words of the libraries in the job's log: it has not begun."""
    logger = logging.getLogger("diffusers")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(former)
