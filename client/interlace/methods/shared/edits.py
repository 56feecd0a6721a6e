"""Edits that touch no weight: what an edit would add to a weight is added to what its module gives.

``W + B A`` gives ``W x + B (A x)``: the same function, to rounding, and the weights that everybody shares stay as they
are. An artifact of kind ``edit`` is a list of such additions at sites of `sites`; one of kind ``peft`` is a LoRA's.
They work below nnsight: a trace reads the output with the edit, and the edit reads the input that a trace has put in.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nnsight.intervention.source import STATE, State
from torch import Tensor, nn

from interlace.methods.base import Opened
from interlace.methods.shared.sites import Projection, Sites, first_of, projection_at, unwrapped
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

FORMAT = 1
MOST_EDITS = 4096  # in one artifact
_ADDED = "_interlace_added"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_([AB])\.weight")
#: Of a LoRA's configuration (`peft.LoraConfig`, 0.21): who made it of what, and how it was trained; and what `_of_lora`
#: reads from tensors or heeds itself.
_HEEDED = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "lora_dropout",
    "fan_in_fan_out",
    "rank_pattern",
    "lora_alpha",
    "alpha_pattern",
    "use_rslora",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
}
#: The other fields' values for which a LoRA is two matrices beside weights that stay as they are, where those are not
#: only the empty ones: these the fields have by default, but for the ways of drawing the first matrices.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "mica", "orthogonal"),  # PiSSA and its like change the weights, too
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
}


@dataclass(frozen=True)
class Edit:
    """``output += up (down input)`` at a site of a block, or at a module by its path. Gradients reach both matrices."""

    #: [rank, d_in]
    down: Tensor
    #: [d_out, rank]
    up: Tensor
    site: str = ""
    layer: int | None = None
    #: In place of `site` and `layer`.
    module: str = ""

    @classmethod
    def rank_one(cls, u: Tensor, lambda_: Tensor, site: str, layer: int) -> "Edit":
        """As ROME has it: W + lambda u^T, with u [d_in] and lambda [d_out]."""
        return cls(u[None, :], lambda_[:, None], site, layer)


@dataclass(frozen=True, eq=False)
class _Addition:
    """An edit in its place."""

    projection: Projection
    down: Tensor
    up: Tensor

    def __call__(self, states: Tensor, output: Any) -> Any:
        given = first_of(output)
        work = torch.promote_types(torch.promote_types(states.dtype, self.down.dtype), torch.float32)
        low = states.to(work) @ self.down.to(states.device, work).mT
        extra = (low @ self.up.to(states.device, work).mT).to(given.device)
        part = self.projection.part
        if part is None:
            new = (given + extra).to(given.dtype)
        else:
            middle = (given[..., part] + extra).to(given.dtype)
            new = torch.cat([given[..., : part.start], middle, given[..., part.stop :]], -1)
        return (new, *output[1:]) if isinstance(output, tuple) else new


@contextmanager
def attached(model: Any, opened: Sequence[Opened]) -> Iterator[None]:
    """Add artifacts of the kinds ``edit`` and ``peft`` to what the modules of ``model`` give, in their order.

    Raises InvalidArtifact for one that was made for another kind of model, or does not fit its place.
    """
    edits = read(model, opened)
    with added(model, edits):
        yield


@contextmanager
def added(model: Any, edits: Sequence[Edit]) -> Iterator[None]:
    """The same for edits that are no artifacts yet, such as those that are being trained. Raises InvalidArtifact."""
    module = unwrapped(model)
    additions = _placed(module, edits)
    undo = []
    try:
        for one in additions:
            undo.append(_add(one))
        yield
    finally:
        for take_out in reversed(undo):
            take_out()


def read(model: Any, opened: Sequence[Opened]) -> list[Edit]:
    """The edits of artifacts, for one model. Raises InvalidArtifact."""
    edits: list[Edit] = []
    for one in opened:
        if one.kind == "edit":
            edits += unpack(one, _model_type(model))
        elif one.kind == "peft":
            edits += _of_lora(one)
        else:
            raise InvalidArtifact(
                f"{one.ref} is of the kind {one.kind}; what is attached as an edit is `edit` or `peft`."
            )
    return edits


def deltas(model: Any, edits: Sequence[Edit]) -> dict[str, Tensor]:
    """What edits would add to the weights of a model, by the parameters' names. Raises InvalidArtifact."""
    found: dict[str, Tensor] = {}
    for one in _placed(unwrapped(model), edits):
        where, weight = one.projection, one.projection.module.weight
        delta = torch.zeros(weight.shape, dtype=torch.float32)
        # GPT-2's own modules hold the transpose.
        rows = delta.mT if type(where.module).__name__ == "Conv1D" else delta
        rows[slice(None) if where.part is None else where.part] += (one.up.float() @ one.down.float()).detach().cpu()
        path = f"{where.path}.weight"
        found[path] = found[path] + delta if path in found else delta
    return found


def pack(edits: Sequence[Edit], model: Any, **more: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of an ``edit`` artifact for a model; ``more`` goes into the configuration."""
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for number, edit in enumerate(edits):
        place = {"module": edit.module} if edit.module else {"layer": edit.layer, "site": edit.site}
        if edit.down.shape[0] == 1:
            found = {"u": edit.down[0], "lambda": edit.up[:, 0]}
        else:
            found = {"A": edit.down, "B": edit.up}
        tensors |= {f"{number}.{name}": one.detach().cpu().contiguous().clone() for name, one in found.items()}
        entries.append({**place, "form": "rank_one" if "u" in found else "low_rank"})
    return tensors, {**more, "format": FORMAT, "model_type": _model_type(model), "edits": entries}


def unpack(opened: Opened, model_type: str) -> list[Edit]:
    """The edits of an ``edit`` artifact. Raises InvalidArtifact."""
    config, name = opened.config, opened.ref
    entries = config.get("edits")
    if config.get("format") != FORMAT or not isinstance(entries, list) or not 0 < len(entries) <= MOST_EDITS:
        raise InvalidArtifact(
            f"{name} is no edit of format {FORMAT}: `edit_config.json` has `format`, `model_type` and `edits`, a list "
            f"of 1 to {MOST_EDITS:,}."
        )
    if config.get("model_type") != model_type:
        raise InvalidArtifact(f"{name} edits a {str(config.get('model_type'))[:64]}; this model is a {model_type}.")
    edits, used = [], set()
    for number, entry in enumerate(entries):
        forms = {"rank_one": ("u", "lambda"), "low_rank": ("A", "B")}
        if not isinstance(entry, Mapping) or entry.get("form") not in forms:
            raise InvalidArtifact(f"`edits[{number}].form` of {name} must be `rank_one` or `low_rank`.")
        names = [f"{number}.{part}" for part in forms[entry["form"]]]
        if missing := [one for one in names if one not in opened.tensors]:
            raise InvalidArtifact(f"{name} lacks the tensor {missing[0]}.")
        used |= set(names)
        down, up = (opened.tensors[one] for one in names)
        if entry["form"] == "rank_one":
            if down.dim() != 1 or up.dim() != 1:
                raise InvalidArtifact(f"{names[0]} and {names[1]} of {name} must be vectors.")
            down, up = down[None, :], up[:, None]
        edits.append(_entry(entry, down, up, f"`edits[{number}]` of {name}"))
    if strange := sorted(opened.tensors.keys() - used):
        raise InvalidArtifact(f"{name} has the tensor {strange[0]}, which none of its edits names.")
    return edits


def _entry(entry: Mapping[str, Any], down: Tensor, up: Tensor, what: str) -> Edit:
    if isinstance(path := entry.get("module"), str) and path:
        return Edit(down, up, module=path)
    if not isinstance(entry.get("site"), str) or type(entry.get("layer")) is not int:
        raise InvalidArtifact(f"{what} must say `site` and `layer`, or `module`.")
    return Edit(down, up, entry["site"], entry["layer"])


def _of_lora(opened: Opened) -> list[Edit]:
    """A plain LoRA of PEFT's as edits. Raises InvalidArtifact for one that is more than two matrices a module."""
    config, name = opened.config, opened.ref
    if config.get("peft_type") != "LORA":
        raise InvalidArtifact(
            f"{name} is a {config.get('peft_type')}; only a LoRA can be had as an edit (`env.edits`)."
        )
    for field, value in config.items():
        if value and field not in _HEEDED and value not in _PLAIN.get(field, ()):
            raise InvalidArtifact(
                f"`{field}` of {name} is {str(value)[:64]!r}: that may be more than a LoRA adds to a module's output. "
                "Attach it with `peft=` instead."
            )
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in opened.tensors.items():
        match = _LORA.fullmatch(key.removeprefix(_PREFIX))
        if match is None or tensor.dim() != 2:
            raise InvalidArtifact(f"{key} of {name} is no matrix of a LoRA of a linear module. Attach it with `peft=`.")
        halves.setdefault(match[1], {})[match[2]] = tensor
    edits = []
    for path, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise InvalidArtifact(f"{name} has one of lora_A and lora_B at {path}, and not the other.")
        edits.append(Edit(pair["A"], pair["B"] * _scale(config, path, pair["A"].shape[0]), module=path))
    return edits


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """What PEFT multiplies B A with (`LoraConfig`: lora_alpha, alpha_pattern, use_rslora)."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), None)
    alpha = float(config.get("lora_alpha", 8) if alpha is None else alpha)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _placed(module: nn.Module, edits: Sequence[Edit]) -> list[_Addition]:
    """Raises InvalidArtifact."""
    sites = Sites.of(module) if any(not edit.module for edit in edits) else None
    additions = []
    for edit in edits:
        where = edit.module or f"{edit.site} of layer {edit.layer}"
        try:
            if sites is None or edit.module:
                projection = projection_at(module, edit.module)
            else:
                projection = sites.projection(edit.site, -1 if edit.layer is None else edit.layer)
        except InvalidRequest as error:
            raise InvalidArtifact(str(error)) from None
        rank = edit.down.shape[0] if edit.down.dim() == 2 else -1
        if tuple(edit.down.shape) != (rank, projection.d_in) or tuple(edit.up.shape) != (projection.d_out, rank):
            raise InvalidArtifact(
                f"An edit of shapes {list(edit.down.shape)} and {list(edit.up.shape)} does not fit {where}, which "
                f"reads {projection.d_in} and gives {projection.d_out}: expected [rank, {projection.d_in}] and "
                f"[{projection.d_out}, rank]."
            )
        if not edit.down.is_floating_point() or not edit.up.is_floating_point():
            raise InvalidArtifact(f"An edit of {where} must be of floating-point numbers.")
        additions.append(_Addition(projection, edit.down, edit.up))
    return additions


def _model_type(model: Any) -> str:
    module = unwrapped(model)
    return str(getattr(getattr(module, "config", None), "model_type", type(module).__name__))


class _EditedState(State):  # type: ignore[misc]
    """nnsight's record of a module, whose body gives what the module would with its edits.

    nnsight calls the body between the values that a trace sees as the module's input and output, and puts another in
    its place when a trace asks for `.source`.
    """

    __slots__ = ()

    @property
    def body(self) -> Any:
        return functools.partial(_run, State.body.__get__(self))

    @body.setter
    def body(self, body: Any) -> None:
        State.body.__set__(self, body)


def _run(body: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _edited(module, args, kwargs, body(module, *args, **kwargs))


def _edited(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    states = args[0] if args else next(iter(kwargs.values()))
    for addition in module.__dict__[_ADDED]:
        output = addition(states, output)
    return output


def _add(addition: _Addition) -> Any:
    """Put it in; returns what takes it out."""
    module = addition.projection.module
    state = module.__dict__.get(STATE)
    additions = module.__dict__.setdefault(_ADDED, [])
    handle = None
    if not additions:
        if state is not None:
            state.__class__ = _EditedState
        else:
            handle = module.register_forward_hook(_edited, with_kwargs=True)
            module.__dict__[_ADDED + "_handle"] = handle
    additions.append(addition)

    def take_out() -> None:
        additions.remove(addition)
        if not additions:
            del module.__dict__[_ADDED]
            if isinstance(module.__dict__.get(STATE), _EditedState):
                module.__dict__[STATE].__class__ = State
            if (hook := module.__dict__.pop(_ADDED + "_handle", None)) is not None:
                hook.remove()

    return take_out
