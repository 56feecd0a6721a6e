"""Attach adapters to this process's own copy of the model, before a byte of the user's code is read.

What local nnsight does with `peft=` (nnsight.modeling.peft.attach), from bytes that the parent has handed over: this
process has no files. Paths into the model stay as they are with the adapter on the client's side. One thing differs:
nnsight leaves an adapter's dropout on, and so its values to chance; here it is off, as in the rest of the model.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import peft
import torch
from nnsight.modeling.peft import detach
from peft.functional import cast_adapter_dtype

from interlace.protocol.adapter import parse_config
from interlace.protocol.errors import AdapterRefused
from interlace_workers.child import lora
from interlace_workers.child.loading.model import HostedModel, persistent_of
from interlace_workers.child.lora import out_of_memory
from interlace_workers.child.opened import read
from interlace_workers.order import Adapter

_PREFIX = "base_model.model."
_LONGEST = 1000  # characters of a reason
_SHOWN = 3  # of names that have no place


def apply(model: HostedModel, adapters: Sequence[Adapter], fds: Sequence[int]) -> HostedModel:
    """The model with its adapters, each behind a descriptor, which is closed. Raises AdapterRefused."""
    attached = [(adapter, fd) for adapter, fd in zip(adapters, fds, strict=True) if adapter.use == "adapter"]
    if not attached:
        return model
    tree = model.model
    loras = []
    for adapter, fd in attached:
        config, header, tensors = read(adapter, fd)
        if not model.is_pipeline and adapter.kind == "peft":
            attach(tree, adapter.name, config, tensors)
        else:
            loras.append(lora.of(adapter, config, header.metadata, tensors))
    lora.load(tree, loras)
    return replace(model, persistent=persistent_of(tree))


def attach(model: Any, name: str, config: bytes, tensors: dict[str, torch.Tensor]) -> None:
    """Put a PEFT adapter's layers into a nnsight model. Raises AdapterRefused unless every tensor has its place."""
    module = model._module
    parameters, modules = {id(one) for one in module.parameters()}, set(module.modules())
    state = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    try:
        with warnings.catch_warnings(action="ignore"):  # they would go into the job's log
            # As PeftConfig.from_pretrained, which would read a file.
            peft.inject_adapter_in_model(peft.PeftConfig.from_peft_type(**parse_config(config)), module)
            cast_adapter_dtype(module, "default")
            result = peft.set_peft_model_state_dict(module, state)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise AdapterRefused(f"Adapter {name} does not fit {_called(module)}: {str(error)[:_LONGEST]}") from None
    added = {key for key, parameter in module.named_parameters() if id(parameter) not in parameters}
    if missing := sorted(added & set(result.missing_keys)):
        raise AdapterRefused(f"Adapter {name} lacks weights for {_called(module)}: {_some(missing)}")
    if result.unexpected_keys:
        raise AdapterRefused(
            f"Adapter {name} has weights without a place in {_called(module)}: {_some(sorted(result.unexpected_keys))}"
        )
    for one in module.modules():
        if one not in modules:
            one.train(module.training)
    model.peft = name
    model._update(module)


@contextmanager
def taken_out(model: Any) -> Iterator[None]:
    """Take out of a nnsight model, after the block, what `apply` has put in, for a process that goes on with it."""
    former = [(parameter, parameter.requires_grad) for parameter in model._module.parameters()]
    try:
        yield
    finally:
        if getattr(model, "peft", None) is not None:
            detach(model._module)
            model.peft = None
            model._update(model._module)
            for parameter, requires_grad in former:  # PEFT has frozen them
                parameter.requires_grad_(requires_grad)
        lora.unload(model)


def _called(module: Any) -> str:
    return f"this model ({type(module).__name__})"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}. Was it made for another model, or for another `task`?"
