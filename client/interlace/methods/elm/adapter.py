"""The low-rank adapter that is trained: PEFT's LoRA; where PEFT refuses a layer, the same as an addition to outputs."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interlace.methods.base import ArtifactName, Report
from interlace.methods.elm.spec import Lora
from interlace.methods.shared import edits as _edits
from interlace.protocol.errors import InvalidRequest

#: What PEFT refuses in a block with a recurrence (`_check_lora_target_modules_mamba`).
_REFUSED = ("out_proj", "conv1d")
_RECURRENT = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
#: Modules whose weights their block reads itself: no hook sees them.
_NEVER_CALLED = ("conv1d", "dt_proj")
_PARTS = {"attn": ("attn", "attention"), "mlp": ("mlp", "feed_forward"), "mixer": ("mixer",)}
_NAME = "default"


class Adapter(Protocol):
    """What is trained, attached to a model whose weights stay as they are."""

    #: By name, in one order.
    parameters: dict[str, nn.Parameter]

    def disabled(self) -> Any:
        """A context in which the model is the base model."""

    def training(self, on: bool) -> None:
        """With dropout, or without."""

    def keep(self, report: Report, name: str) -> ArtifactName:
        """As an artifact."""


@contextmanager
def attached(module: Any, wish: Lora) -> Iterator[Adapter]:
    """An adapter that does nothing yet, and is gone at the end. Raises InvalidRequest for what has no place."""
    paths = places(module, wish)
    refused = module.config.model_type in _RECURRENT and any(path.endswith(_REFUSED) for path in paths)
    wanted_gradient = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in wanted_gradient:
        parameter.requires_grad_(False)
    made: _Virtual | _Peft | None = None
    try:
        made = (_Virtual if refused else _Peft)(module, wish, paths)
        yield made
    finally:
        if made is not None:
            made.take_out()
        for parameter, wanted in wanted_gradient:
            parameter.requires_grad_(wanted)
            parameter.grad = None


def places(module: nn.Module, wish: Lora) -> list[str]:
    """The paths of the linear layers to train. Raises InvalidRequest."""
    if hasattr(module, "peft_config"):
        raise InvalidRequest("The model has an adapter already; this method trains one on the bare model.")
    stack = _blocks(module)
    blocks = module.get_submodule(stack)
    first, last = wish.layers
    if last >= len(blocks):
        raise InvalidRequest(
            f"`lora.layers` is [{first}, {last}], but the model has the blocks 0 to {len(blocks) - 1}."
        )
    found = []
    linear: list[str] = []
    for layer in range(first, last + 1):
        for path, inner in blocks[layer].named_modules():
            if isinstance(inner, (nn.Linear, Conv1D)) and path.rpartition(".")[2] not in _NEVER_CALLED:
                linear.append(path)
                if any(_is_of(path, target) for target in wish.targets):
                    found.append(f"{stack}.{layer}.{path}")
    for target in wish.targets:
        if target not in _PARTS and not any(_is_of(path, target) for path in linear):
            raise InvalidRequest(
                f"`lora.targets` has {target!r}, which no linear layer of a block is called; there are "
                f"{', '.join(sorted(set(linear)))}."
            )
    if not found:
        raise InvalidRequest(
            f"`lora.targets` {list(wish.targets)} is nothing in these blocks: {', '.join(linear[:12])}."
        )
    return found


def _is_of(path: str, target: str) -> bool:
    if target in _PARTS:
        return any(part.endswith(_PARTS[target]) for part in path.split("."))
    return path == target or path.endswith(f".{target}")


def _blocks(module: nn.Module) -> str:
    lists = [(len(inner), path) for path, inner in module.named_modules() if isinstance(inner, nn.ModuleList)]
    if not lists:
        raise InvalidRequest(f"A {type(module).__name__} has no list of blocks that an adapter could be put into.")
    path: str = max(lists, key=lambda one: (one[0], -len(one[1])))[1]
    return path


class _Peft:
    def __init__(self, module: Any, wish: Lora, paths: list[str]) -> None:
        self._module = module
        self._config = peft.LoraConfig(
            r=wish.rank,
            lora_alpha=wish.alpha,
            lora_dropout=wish.dropout,
            target_modules=paths,
            fan_in_fan_out=all(isinstance(module.get_submodule(path), Conv1D) for path in paths),
            bias="none",
            task_type="CAUSAL_LM",
        )
        peft.inject_adapter_in_model(self._config, module, _NAME)
        self._layers = [inner for inner in module.modules() if isinstance(inner, BaseTunerLayer)]
        self.parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
        for one in self.parameters.values():
            one.data = one.data.float()
        self.training(False)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def training(self, on: bool) -> None:
        for layer in self._layers:
            layer.lora_dropout.train(on)

    def keep(self, report: Report, name: str) -> ArtifactName:
        state = peft.get_peft_model_state_dict(self._module, adapter_name=_NAME, save_embedding_layers=False)
        tensors = {f"base_model.model.{key}": one.detach().cpu().contiguous() for key, one in state.items()}
        config = {
            **{key: _plain(value) for key, value in self._config.to_dict().items()},
            "base_model_name_or_path": None,  # where the weights lie here tells nobody anything
            "inference_mode": True,
        }
        return report.artifact("peft", tensors, config, name=name)

    def take_out(self) -> None:
        for parent in list(self._module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BaseTunerLayer):
                    setattr(parent, name, child.get_base_layer())
        if hasattr(self._module, "peft_config"):
            del self._module.peft_config


class _Virtual:
    """``output += alpha / rank * B (A dropout(input))`` in a hook: the function of a LoRA, on any linear layer."""

    def __init__(self, module: Any, wish: Lora, paths: list[str]) -> None:
        self._module, self._paths, self._scale = module, paths, wish.alpha / wish.rank
        self._dropout, self._on = nn.Dropout(wish.dropout).eval(), True
        self.parameters: dict[str, nn.Parameter] = {}
        self._hooks = []
        for path in paths:
            inner = module.get_submodule(path)
            out, read = inner.weight.shape if isinstance(inner, nn.Linear) else inner.weight.shape[::-1]
            device = inner.weight.device
            down, up = torch.empty(wish.rank, read, device=device), torch.zeros(out, wish.rank, device=device)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as LoRA has it
            self.parameters[f"{path}.A"], self.parameters[f"{path}.B"] = nn.Parameter(down), nn.Parameter(up)
            self._hooks.append(inner.register_forward_hook(self._added(path)))

    def _added(self, path: str) -> Any:
        down, up = self.parameters[f"{path}.A"], self.parameters[f"{path}.B"]

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._on:
                return None
            states: Tensor = self._dropout(inputs[0].to(down.dtype))
            return output + ((states @ down.mT) @ up.mT * self._scale).to(output.dtype)

        return hook

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def training(self, on: bool) -> None:
        self._dropout.train(on)

    def keep(self, report: Report, name: str) -> ArtifactName:
        edits = []
        for path in self._paths:
            down, up = self.parameters[f"{path}.A"].detach(), self.parameters[f"{path}.B"].detach()
            edits.append(_edits.Edit(down, up * self._scale, module=path))
        tensors, config = _edits.pack(edits, self._module)
        return report.artifact("edit", tensors, config, name=name)

    def take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _plain(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(getattr(value, "value", value))
