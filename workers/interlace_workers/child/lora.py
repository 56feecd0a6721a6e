"""Load LoRAs into this process's own copy of a diffusers pipeline, from tensors that are in memory.

As `pipeline.load_lora_weights(FOLDER)` does, each under a name of its own, then `set_adapters` with their weights. One
that has a schedule is on at some timesteps only: before each pass of the denoiser its weight is set, or 0, with which
the layers give the base model's values to the bit.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from interlace.methods.shared.denoising.lora import OURS, as_diffusers, digest
from interlace.methods.shared.files import said_of
from interlace.protocol.adapter import parse_config
from interlace.protocol.errors import AdapterRefused, InvalidRequest
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


def of(adapter: Adapter, config: bytes, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> Lora:
    """A LoRA out of its files, in diffusers' layout or PEFT's."""
    if adapter.kind != "peft":
        return Lora(adapter, tensors, metadata)
    renamed, said = as_diffusers(tensors, parse_config(config))
    return Lora(adapter, renamed, {name: json.dumps(one) for name, one in said.items()})


def load(model: Any, loras: Sequence[Lora]) -> None:
    """Load LoRAs into a nnsight DiffusionModel. Raises AdapterRefused unless every tensor has its place."""
    if not loras:
        return
    pipeline = model.pipeline
    _check_base(pipeline, loras)
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
    _gate(pipeline, dict(zip(names, (lora.adapter for lora in loras), strict=True)))
    for one in model._module.modules():
        if one not in known:
            one.train(model._module.training)
    model._update(model._module)


def unload(model: Any) -> None:
    """Take every LoRA out of a nnsight DiffusionModel; nothing else has any."""
    pipeline: Any = getattr(model, "pipeline", None)
    if (gate := _gates.pop(id(pipeline), None)) is not None:
        gate.remove()
    if hasattr(pipeline, "unload_lora_weights") and pipeline.get_list_adapters():
        pipeline.unload_lora_weights()
        model._update(model._module)


def _check_base(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Raises AdapterRefused where a LoRA names the weights that it was made for, and the denoiser has others."""
    named = [(lora, said_of(lora.metadata).get(OURS)) for lora in loras]
    stated = [(lora, said["base_sha256"]) for lora, said in named if isinstance(said, dict) and "base_sha256" in said]
    if not stated:
        return
    here = digest(_denoiser(pipeline))
    for lora, base in stated:
        if base != here:
            raise AdapterRefused(
                f"Adapter {lora.adapter.name} was made for a denoiser whose weights have the SHA-256 "
                f"{str(base)[:16]}..., and this one's have {here[:16]}...: it would draw something, and not what it "
                "learned. It may be another model, or the same in another `dtype`."
            )


def _denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or pipeline.transformer


#: By the id of a pipeline: what sets weights before each pass of its denoiser.
_gates: dict[int, Any] = {}


def _gate(pipeline: Any, adapters: Mapping[str, Adapter]) -> None:
    """Have each adapter that has bounds on at the timesteps within them only. Raises InvalidRequest."""
    bounded = {name: one for name, one in adapters.items() if (one.t_min, one.t_max) != (None, None)}
    if not bounded:
        return
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise InvalidRequest(
            f"`t_min` and `t_max` of `env.lora` are for denoisers that are told a timestep; a "
            f"{type(pipeline.scheduler).__name__} goes by noise levels."
        )
    denoiser = _denoiser(pipeline)
    layers = [layer for layer in denoiser.modules() if isinstance(layer, LoraLayer)]
    now: dict[str, float] = {}

    def before(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        t = float(torch.as_tensor(args[1] if len(args) > 1 else options["timestep"]).max())
        for name, one in bounded.items():
            on = (one.t_min is None or t >= one.t_min) and (one.t_max is None or t <= one.t_max)
            weight = one.weight if on else 0.0
            if now.get(name) != weight:
                now[name] = weight
                for layer in layers:
                    layer.set_scale(name, weight)

    _gates[id(pipeline)] = denoiser.register_forward_pre_hook(before, with_kwargs=True)


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
