"""LoRA layers on a denoiser, by PEFT: several at once, each with its weight, its own parameters, and its files.

``W x + weight alpha / rank B A x``. B begins at 0. With ``Wish.first`` set, the rows of A are rows of one orthonormal
basis, frozen, and adapters that take disjoint rows write from subspaces that are exactly orthogonal.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from interlace.protocol.errors import InvalidArtifact, InvalidRequest

#: In a file's metadata: what diffusers must know of ranks and scales, and what we say of where it comes from.
METADATA, OURS = "lora_adapter_metadata", "interlace"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_PREFIX = "base_model.model."
_FACTORS = re.compile(r"(.+)\.(lora_[AB]\.weight)")


@dataclass(frozen=True)
class Wish:
    """One adapter to be."""

    rank: int
    #: None: the rank, so that the scale is 1.
    alpha: float | None = None
    #: Ends of module paths, or one regular expression that matches whole paths.
    targets: Sequence[str] | str = ATTENTION
    #: The row of the basis that is the first of A's; None: A is random, and trained.
    first: int | None = None

    def config(self) -> peft.LoraConfig:
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        alpha = self.rank if self.alpha is None else self.alpha
        return peft.LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")


class Layers:
    """The adapters of a module, by name. Use `attached`."""

    def __init__(self, module: nn.Module, wishes: Mapping[str, Wish], basis_seed: int) -> None:
        self._module, self._wishes = module, dict(wishes)
        for name, wish in wishes.items():
            try:
                with warnings.catch_warnings(action="ignore"):  # that there are several, which is meant
                    peft.inject_adapter_in_model(wish.config(), module, name)
            except ValueError as error:  # of target modules that are not there
                raise InvalidRequest(f"LoRA layers cannot be put in: {error}") from None
        self._layers = {path: one for path, one in module.named_modules() if isinstance(one, LoraLayer)}
        for layer in self._layers.values():
            for part in (layer.lora_A, layer.lora_B):
                part.float()
        self._set_bases(basis_seed)
        self.use({})

    def _set_bases(self, seed: int) -> None:
        """Raises InvalidRequest where a layer is too narrow for all the rows."""
        fixed = {name: wish for name, wish in self._wishes.items() if wish.first is not None}
        rows = max((wish.first + wish.rank for wish in fixed.values() if wish.first is not None), default=0)
        bases: dict[int, Tensor] = {}
        for path, layer in self._layers.items():
            for name in fixed.keys() & layer.lora_A.keys():
                wish, weight = fixed[name], layer.lora_A[name].weight
                width = weight[0].numel()
                if rows > width:
                    raise InvalidRequest(
                        f"The ranks add up to {rows}, and {path} reads {width} numbers: orthogonal rows of A must fit "
                        f"into them. Ranks of {width} together, or less, do."
                    )
                if width not in bases:
                    dice = torch.Generator().manual_seed(seed)
                    drawn = torch.randn(width, rows, generator=dice, dtype=torch.float64)
                    bases[width] = torch.linalg.qr(drawn).Q.T
                assert wish.first is not None
                own = bases[width][wish.first : wish.first + wish.rank]
                weight.data.copy_(own.reshape(weight.shape))

    def use(self, weights: Mapping[str, float], train: Collection[str] = ()) -> None:
        """Have these adapters on, each at its weight, and no others; gradients reach those of ``train`` alone."""
        on = list(weights)
        for layer in self._layers.values():
            layer.enable_adapters(bool(on))
            if on:
                layer.set_adapter(on)
                for name, weight in weights.items():
                    layer.set_scale(name, weight)
            for name in layer.lora_A:
                trained = name in train
                layer.lora_A[name].weight.requires_grad_(trained and self._wishes[name].first is None)
                layer.lora_B[name].weight.requires_grad_(trained)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """What is trained of an adapter, by path, in one order: B, and A unless its rows are of the basis."""
        found = {}
        for path, layer in self._layers.items():
            if name not in layer.lora_A:
                continue
            if self._wishes[name].first is None:
                found[f"{path}.lora_A.weight"] = layer.lora_A[name].weight
            found[f"{path}.lora_B.weight"] = layer.lora_B[name].weight
        return found

    def factors(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """A [rank, in] and alpha / rank B [out, rank] of each layer, by path; a convolution's A is flattened."""
        wish = self._wishes[name]
        scale = (wish.rank if wish.alpha is None else wish.alpha) / wish.rank
        return {
            path: (
                layer.lora_A[name].weight.detach().flatten(1),
                scale * layer.lora_B[name].weight.detach().flatten(1),
            )
            for path, layer in self._layers.items()
            if name in layer.lora_A
        }

    def tensors(self, name: str, component: str = "unet") -> dict[str, Tensor]:
        """An adapter in diffusers' layout, `COMPONENT.PATH.lora_A.weight`."""
        state = peft.get_peft_model_state_dict(self._module, adapter_name=name, save_embedding_layers=False)
        return {f"{component}.{key}": one.detach().cpu().contiguous() for key, one in state.items()}

    def config(self, name: str, said: Mapping[str, Any], component: str = "unet") -> dict[str, Any]:
        """What goes into the file's metadata, with what the method ``said`` of it."""
        wish = self._wishes[name]
        return metadata_of(wish.config().to_dict(), said, component)

    def load(self, name: str, tensors: Mapping[str, Tensor], component: str = "unet") -> None:
        """Take an adapter's weights, in diffusers' layout. Raises InvalidArtifact unless every key lands."""
        own = {key.removeprefix(f"{component}."): one for key, one in tensors.items()}
        places = {
            f"{path}.{part}.weight": getattr(layer, part)[name].weight
            for path, layer in self._layers.items()
            if name in layer.lora_A
            for part in ("lora_A", "lora_B")
        }
        if astray := sorted(own.keys() ^ places.keys()):
            raise InvalidArtifact(
                f"The adapter does not fit this model: {len(astray)} tensors have no place, or places no tensor, such "
                f"as {astray[0]}. Was it made for another model?"
            )
        with torch.no_grad():
            for key, place in places.items():
                if own[key].shape != place.shape:
                    raise InvalidArtifact(f"{key} is {list(own[key].shape)}; this model has {list(place.shape)} there.")
                place.copy_(own[key])


@contextmanager
def attached(module: Any, wishes: Mapping[str, Wish], *, basis_seed: int = 123846) -> Iterator[Layers]:
    """Adapters that do nothing yet, all off, and gone at the end. Raises InvalidRequest for what has no place.

    ``basis_seed``: of the orthonormal rows; layers of one width share them. The published code has 123846.
    """
    if getattr(module, "peft_config", None):
        raise InvalidRequest("The denoiser has adapters already; this method brings its own to the bare model.")
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield Layers(module, wishes, basis_seed)
    finally:
        _take_out(module)
        for parameter, gradient in wanted:
            parameter.requires_grad_(gradient)


def _take_out(module: Any) -> None:
    """Leave a module as if it had never had an adapter."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, child.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def wish_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any], component: str = "unet") -> Wish:
    """The adapter that an artifact of kind `diffusers-lora` is, for `attached`. Raises InvalidArtifact."""
    paths, ranks = [], set()
    for key, tensor in tensors.items():
        match = _FACTORS.fullmatch(key)
        if match is None or not key.startswith(f"{component}."):
            raise InvalidArtifact(f"{key} is no factor of a LoRA of the {component}.")
        if match[2].startswith("lora_A"):
            paths.append(match[1].removeprefix(f"{component}."))
            ranks.add(tensor.shape[0])
    if len(ranks) != 1:
        raise InvalidArtifact(f"The adapter has the ranks {sorted(ranks)}; expected one rank in all its layers.")
    said = config.get(METADATA) or {}
    alpha = said.get(f"{component}.lora_alpha") if isinstance(said, Mapping) else None
    return Wish(ranks.pop(), alpha, "|".join(re.escape(path) for path in sorted(paths)))


def metadata_of(config: Mapping[str, Any], said: Mapping[str, Any], component: str = "unet") -> dict[str, Any]:
    """A LoRA's configuration as `save_lora_weights` keeps it in a file's metadata, and our own words."""
    plain = json.loads(json.dumps({**config, "inference_mode": True}, default=_plain))
    return {METADATA: {f"{component}.{key}": value for key, value in plain.items()}, OURS: dict(said)}


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights, 64 hex digits: of names, types, shapes and bytes, in the order of names.

    LoRA layers that are in it are no part of it.
    """
    found = hashlib.sha256()
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def as_peft(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter of one component out of diffusers' layout in PEFT's: tensors, and `adapter_config.json`.

    Raises InvalidArtifact for one of several components, or in the layout of another trainer.
    """
    components = {key.partition(".")[0] for key in tensors}
    strange = [key for key in tensors if _FACTORS.fullmatch(key) is None]
    if len(components) != 1 or strange:
        raise InvalidArtifact(
            "PEFT's layout holds a LoRA of one component, named as PEFT names it; this one has "
            f"{strange[0] if strange else ', '.join(sorted(components))}."
        )
    component = components.pop()
    said = config.get(METADATA)
    if not isinstance(said, Mapping):
        wish = wish_of(tensors, {}, component)
        said = metadata_of(wish.config().to_dict(), {}, component)[METADATA]
    plain = {key.removeprefix(f"{component}."): value for key, value in said.items()}
    plain |= {"peft_type": "LORA", "inference_mode": True}
    plain[OURS] = {**config.get(OURS, {}), "component": component}
    return {f"{_PREFIX}{key.removeprefix(f'{component}.')}": one for key, one in tensors.items()}, plain


def as_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The way back: tensors and the file's metadata, for a component of a pipeline (the ``unet`` if it says none)."""
    ours = dict(config.get(OURS) or {})
    component = str(ours.pop("component", "unet"))
    plain = {key: value for key, value in config.items() if key != OURS}
    return (
        {f"{component}.{key.removeprefix(_PREFIX)}": one for key, one in tensors.items()},
        metadata_of(plain, ours, component),
    )


def _plain(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(getattr(value, "value", value))
