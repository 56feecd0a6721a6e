"""One vocabulary of places in a language model, resolved to its modules, and held against a forward before it is used.

=================  ==============================================================================================
``resid_post``     what block L gives: the residual stream after it
``attn_out``       what its attention adds to the stream; ``mlp_out`` the MLP, ``mixer_out`` a Mamba block's mixer
``head:K``         what head K brings to the attention's output projection
``attn_q``, ``attn_k``, ``attn_v``  what the attention's projections make of what it reads, before norms and rotation;
                   ``attn_q:K`` of one head (where heads share keys and values: ``attn_k:K`` of head K of those)
``mlp_in``         what the MLP reads; ``mlp_act`` what its down projection reads (the keys of ROME)
``mixer_in.x``     the half of a Mamba block's in_proj that goes into the convolution; ``mixer_in.gate`` the other
``mixer_act``      what out_proj reads, s * silu(gate); ``ssm_out`` s, of the state space model, before the gate
``embed``          the token embeddings
=================  ==============================================================================================

Layers are blocks, from 0. States are [batch, tokens, width]. ``ssm_out`` is no module's output: it is what out_proj
reads, divided by silu of the gate, which is exact to rounding wherever the gate has not underflowed to 0.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interlace.protocol.errors import InvalidRequest

_PROBE = 5  # tokens of the forward that checks


@dataclass(frozen=True)
class Place:
    """Where in a forward a state is: what a module reads or gives, or some of its last dimension."""

    site: str
    layer: int | None
    path: str
    module: nn.Module
    side: Literal["input", "output"]
    #: Of the last dimension; all of it where None.
    part: slice | None = None
    #: Where the gate is that multiplies this state, which is then seen without it (``ssm_out``).
    gate: "Place | None" = None


@dataclass(frozen=True)
class Projection:
    """A linear module that an edit adds to: it reads [..., d_in] and gives [..., d_out]."""

    path: str
    module: nn.Module
    d_in: int
    d_out: int
    #: The rows of its output that the site is; all where None.
    part: slice | None = None


@dataclass(frozen=True)
class _Family:
    """Paths: of the blocks and of the embeddings in the model, of the others in a block."""

    layers: str
    embed: str
    attn: str = ""
    mlp: str = ""
    mlp_out: str = ""
    mixer: str = ""
    #: What goes to the stream where it is not what `attn` and `mlp_out` give: norms after them, as in Gemma 2.
    attn_norm: str = ""
    mlp_norm: str = ""
    #: Of queries, keys and values; one path where a single module gives all three, one after the other.
    reads: tuple[str, ...] = ()


_LLAMA: dict[str, Any] = {"attn": "self_attn.o_proj", "mlp": "mlp", "mlp_out": "mlp.down_proj"}
_LLAMA["reads"] = tuple(f"self_attn.{one}_proj" for one in "qkv")
_NORMED = {**_LLAMA, "attn_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
#: The first that a model has all paths of.
_FAMILIES = (
    _Family(
        "transformer.h", "transformer.wte", attn="attn.c_proj", mlp="mlp", mlp_out="mlp.c_proj", reads=("attn.c_attn",)
    ),
    _Family("model.layers", "model.embed_tokens", **_NORMED),
    _Family("model.language_model.layers", "model.language_model.embed_tokens", **_NORMED),
    _Family("model.layers", "model.embed_tokens", **_LLAMA),
    _Family("gpt_neox.layers", "gpt_neox.embed_in", attn="attention.dense", mlp="mlp", mlp_out="mlp.dense_4h_to_h"),
    _Family("backbone.layers", "backbone.embeddings", mixer="mixer"),
)
_READS = ("attn_q", "attn_k", "attn_v")
_KNOWN = "GPT-2, Llama and its likes (Mistral, Qwen, Gemma, SmolLM2), GPT-NeoX, Mamba"


@dataclass(frozen=True)
class Sites:
    """The places that one model has, as `Sites.of` found them to be."""

    module: nn.Module
    model_type: str
    n_layers: int
    n_heads: int
    #: The sites that there are, with ``head:K`` once.
    names: tuple[str, ...]
    #: Why others are not.
    refused: dict[str, str] = field(default_factory=dict)
    _family: _Family = field(default=_FAMILIES[0], repr=False)

    @classmethod
    def of(cls, model: Any) -> "Sites":
        """Of a nnsight model or a plain one, checked by one forward of 5 tokens.

        Raises InvalidRequest for a model that is none of the families, or whose blocks give no residual stream.
        """
        return _checked(cls.unchecked(model))

    @classmethod
    def unchecked(cls, model: Any) -> "Sites":
        """The places that models of this family have, without a forward: for a block that is in the middle of one.

        Raises InvalidRequest for a model that is none of the families.
        """
        module = unwrapped(model)
        family = next((one for one in _FAMILIES if _has(module, one)), None)
        config = getattr(module, "config", None)
        model_type = str(getattr(config, "model_type", type(module).__name__))
        if family is None or (family.mixer and model_type not in ("mamba", "falcon_mamba")):
            raise InvalidRequest(f"Nothing is known of the places in a {type(module).__name__}; known are {_KNOWN}.")
        heads = int(getattr(config, "num_attention_heads", 0) or 0) if family.attn else 0
        names = ["resid_post", "embed"]
        if family.attn:
            names += ["attn_out", "mlp_out", "mlp_in", "mlp_act", *(["head:K"] if heads else [])]
            names += _READS if heads and _reads(module, family) else ()
        if family.mixer:
            names += ["mixer_out", "mixer_act", "mixer_in.x", "mixer_in.gate", "ssm_out"]
        n_layers = len(module.get_submodule(family.layers))
        return cls(module, model_type, n_layers, heads, tuple(names), {}, family)

    def place(self, site: str, layer: int | None = None) -> Place:
        """Raises InvalidRequest, which says what the model has, for a site or a layer that it has not."""
        name, _, number = site.partition(":")
        with_heads = f"{name}:K" in self.names or (name in _READS and name in self.names)
        if with_heads and number.isdigit() and int(number) < self._heads(name):
            return self._place(site, self._layer(layer))
        if site not in self.names:
            why = f" ({self.refused[site]})" if site in self.refused else ""
            heads = f" (K from 0 to {self.n_heads - 1})" if self.n_heads else ""
            raise InvalidRequest(
                f"A {self.model_type} has no site {site[:32]!r}{why}; it has {', '.join(self.names)}{heads}."
            )
        return self._place(site, None if site == "embed" else self._layer(layer))

    def projection(self, site: str, layer: int) -> Projection:
        """The linear module of a site that edits may add to. Raises InvalidRequest where there is none."""
        block = f"{self._family.layers}.{self._layer(layer)}"
        paths = {"attn_out": self._family.attn, "mlp_out": self._family.mlp_out}
        if self._family.mixer:
            into = f"{self._family.mixer}.in_proj"
            paths = {"mixer_out": f"{self._family.mixer}.out_proj", "mixer_in.x": into, "mixer_in.gate": into}
        if not paths.get(site):
            raise InvalidRequest(
                f"An edit at {site[:32]!r} cannot be had: a {self.model_type} has {', '.join(paths)} for edits."
            )
        part = self._half(layer, site) if site.startswith("mixer_in") else None
        return projection_at(self.module, f"{block}.{paths[site]}", part)

    def attention(self, layer: int) -> nn.Module:
        """The attention of a block, which takes `attention_mask`. Raises InvalidRequest for a model without one."""
        if not self._family.attn:
            raise InvalidRequest(f"A {self.model_type} has no attention.")
        return self.module.get_submodule(
            f"{self._family.layers}.{self._layer(layer)}.{self._family.attn.split('.')[0]}"
        )

    def _layer(self, layer: int | None) -> int:
        if layer is None or not 0 <= layer < self.n_layers:
            raise InvalidRequest(f"The layer is {layer}; a {self.model_type} here has 0 to {self.n_layers - 1}.")
        return layer

    def _heads(self, name: str) -> int:
        """Heads may share keys and values."""
        shared = getattr(self.module.config, "num_key_value_heads", None) if name in ("attn_k", "attn_v") else None
        return int(shared or self.n_heads)

    def _read(self, layer: int, site: str) -> tuple[str, slice | None]:
        """The path in the block of the module that gives queries, keys or values, and which of what it gives."""
        name, _, head = site.partition(":")
        paths, which = self._family.reads, _READS.index(name)
        path = paths[0 if len(paths) == 1 else which]
        width = _widths(self.module.get_submodule(f"{self._family.layers}.{layer}.{path}"))[1]
        start, size = (which * width // 3, width // 3) if len(paths) == 1 else (0, width)
        if head:
            size //= self._heads(name)
            start += int(head) * size
        whole = not head and len(paths) > 1
        return path, None if whole else slice(start, start + size)

    def _half(self, layer: int, site: str) -> slice:
        path = f"{self._family.layers}.{layer}.{self._family.mixer}.out_proj"
        width = _widths(self.module.get_submodule(path))[0]
        return slice(0, width) if site == "mixer_in.x" else slice(width, 2 * width)

    def _place(self, site: str, layer: int | None) -> Place:
        family = self._family
        if layer is None:
            return Place(site, None, family.embed, self.module.get_submodule(family.embed), "output")
        block = f"{family.layers}.{layer}"
        gate, part = None, None
        side: Literal["input", "output"] = "input"
        if site.startswith("head:"):
            inside, width = family.attn, _widths(self.module.get_submodule(f"{block}.{family.attn}"))[0]
            size, number = width // self.n_heads, int(site[5:])
            part = slice(number * size, (number + 1) * size)
        elif site.startswith(_READS):
            side = "output"
            inside, part = self._read(layer, site)
        elif site.startswith("mixer_in."):
            inside, side, part = f"{family.mixer}.in_proj", "output", self._half(layer, site)
        elif site in ("mlp_in", "mlp_act", "mixer_act", "ssm_out"):
            inside = {"mlp_in": family.mlp, "mlp_act": family.mlp_out}.get(site, f"{family.mixer}.out_proj")
            gate = self._place("mixer_in.gate", layer) if site == "ssm_out" else None
        else:
            side = "output"
            inside = {
                "resid_post": "",
                "attn_out": family.attn_norm or family.attn,
                "mlp_out": family.mlp_norm or family.mlp_out,
                "mixer_out": f"{family.mixer}.out_proj",
            }[site]
        path = f"{block}.{inside}".rstrip(".")
        return Place(site, layer, path, self.module.get_submodule(path), side, part, gate)


def unwrapped(model: Any) -> nn.Module:
    """The torch module of a nnsight model, or of itself."""
    module = model if isinstance(model, nn.Module) else getattr(model, "_module", None)
    if not isinstance(module, nn.Module):
        raise InvalidRequest(f"{type(model).__name__} is no model: expected one of nnsight or of torch.")
    return module


def projection_at(module: nn.Module, path: str, part: slice | None = None) -> Projection:
    """A linear module by its path. Raises InvalidRequest for one that is not there, or not linear, or never called."""
    parent, _, leaf = path.rpartition(".")
    try:
        found, owner = module.get_submodule(path), module.get_submodule(parent)
    except AttributeError:
        raise InvalidRequest(f"{type(module).__name__} has no module {path[:200]}.") from None
    if "Mamba" in type(owner).__name__ and leaf in ("dt_proj", "conv1d"):
        raise InvalidRequest(
            f"{path} is never called: a Mamba block reads its weights itself. Edit in_proj, x_proj or out_proj."
        )
    d_in, d_out = _widths(found)
    if part is not None:
        d_out = part.stop - part.start
    return Projection(path, found, d_in, d_out, part)


def first_of(value: Any) -> Tensor:
    """The state in what a module gives, which may be a tuple of it and more."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


@contextmanager
def evaluating(model: Any) -> Iterator[nn.Module]:
    """The module in `eval()` and with its weights frozen, in the block; as it was, afterwards."""
    module = unwrapped(model)
    modes = [(one, one.training) for one in module.modules()]
    wanting = [one for one in module.parameters() if one.requires_grad]
    module.eval()
    for one in wanting:
        one.requires_grad_(False)
    try:
        yield module
    finally:
        for one in wanting:
            one.requires_grad_(True)
        for part, mode in modes:
            part.training = mode


def _widths(module: nn.Module) -> tuple[int, int]:
    """What a linear module reads and gives. Raises InvalidRequest for another one."""
    if type(module).__name__ == "Conv1D":  # transformers': its weight is [in, out]
        weight: Any = module.weight
        return int(weight.shape[0]), int(weight.shape[1])
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not isinstance(sizes[0], int) or not isinstance(sizes[1], int):
        raise InvalidRequest(f"A {type(module).__name__} is no linear module: an edit has no place in it.")
    return sizes[0], sizes[1]


def _has(module: nn.Module, family: _Family) -> bool:
    try:
        block = module.get_submodule(family.layers)[0]
        module.get_submodule(family.embed)
        for path in (family.attn, family.mlp, family.mlp_out, family.attn_norm, family.mlp_norm):
            block.get_submodule(path)
        if family.mixer:
            block.get_submodule(f"{family.mixer}.in_proj")
            block.get_submodule(f"{family.mixer}.out_proj")
    except (AttributeError, IndexError, TypeError):
        return False
    return True


def _reads(module: nn.Module, family: _Family) -> bool:
    """Whether the blocks have the modules of queries, keys and values: some have one for all, in an order of theirs."""
    block: Any = module.get_submodule(family.layers)[0]
    return bool(family.reads) and all(path in dict(block.named_modules()) for path in family.reads)


def _checked(sites: Sites) -> Sites:
    """The same with the names of the sites that hold, and the reasons why others do not."""
    family, names = sites._family, list(sites.names)
    calls, values = _observed(sites, [name.replace(":K", ":0") for name in names])
    refused = {}
    for name in names:
        for (site, layer), place in calls.items():
            if site == name.replace(":K", ":0") and place != 1 and name not in refused:
                refused[name] = f"its module in block {layer} runs {place} times a forward, which must be once"
    if "resid_post" in refused or "embed" in refused:
        raise InvalidRequest(f"This {sites.model_type} has no usable residual stream: {refused}.")
    adds = ("mixer_out",) if family.mixer else ("attn_out", "mlp_out")
    if not set(adds) & refused.keys() and (why := _broken(sites, adds, values)):
        refused |= dict.fromkeys(adds, why)
    kept = tuple(name for name in names if name not in refused)
    return Sites(sites.module, sites.model_type, sites.n_layers, sites.n_heads, kept, refused, family)


def _observed(
    sites: Sites, names: list[str]
) -> tuple[Counter[tuple[str, int | None]], dict[tuple[str, int | None], Tensor]]:
    """How often each place came by in one forward, and what it held; ``resid_pre`` beside the sites."""
    calls: Counter[tuple[str, int | None]] = Counter()
    values: dict[tuple[str, int | None], Tensor] = {}
    handles = []

    def watch(key: tuple[str, int | None], module: nn.Module, side: str) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[key] += 1
            values[key] = (args[0] if args else next(iter(kwargs.values()))).detach()

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[key] += 1
            values[key] = first_of(output).detach()

        handles.append(
            module.register_forward_pre_hook(before, with_kwargs=True)
            if side == "input"
            else module.register_forward_hook(after)
        )

    for layer in range(sites.n_layers):
        for name in names:
            if name != "embed":
                place = sites._place(name, layer)
                calls[name, layer] = 0
                watch((name, layer), place.module, place.side)
        watch(("resid_pre", layer), sites._place("resid_post", layer).module, "input")
    calls["embed", None] = 0
    watch(("embed", None), sites._place("embed", None).module, "output")
    try:
        with evaluating(sites.module) as module, torch.no_grad():
            device = next(module.parameters()).device
            module(input_ids=torch.arange(1, _PROBE + 1, device=device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls, values


def _broken(sites: Sites, adds: tuple[str, ...], values: dict[tuple[str, int | None], Tensor]) -> str | None:
    """Why the parts do not add up to the stream; None where they do, and each block reads what the last one gave."""
    for layer in range(sites.n_layers):
        before, after = values["resid_pre", layer].double(), values["resid_post", layer]
        exact = 1e-3 if after.dtype == torch.float32 else 3e-2
        total = before + sum(values[name, layer].double().to(before.device) for name in adds)
        gap = ((total - after.double()).abs().max() / after.double().abs().max().clamp_min(1e-12)).item()
        if gap > exact:
            return f"block {layer} gives something else than what it reads plus {' plus '.join(adds)}: {gap:.1e} off"
        if layer and not torch.allclose(values["resid_post", layer - 1].double(), before, rtol=exact, atol=exact):
            return f"block {layer} does not read what block {layer - 1} gives"
    return None
