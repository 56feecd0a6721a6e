"""Run the traces of several jobs of one tenant in this process, those of equal length in one forward.

A job that is done here is told DONE, and its saved values are those of a run alone within the tolerance of batching.
Any other is told FAILED with the reason: it cannot be merged, or raised, and its parent runs it alone, where what it
does and says is its own. See `plain.py` for what may be merged.
"""

import contextlib
import linecache
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, NoReturn

import torch
from nnsight.intervention.interleaver import EarlyStopException, Mediator, dangling_unwind
from nnsight.intervention.tracer import InterleavingTracer
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from torch.autograd.graph import saved_tensors_hooks

from interlace.protocol.frames import FrameKind
from interlace_workers import steps
from interlace_workers.child import environment, trace
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.child.merging import sharing
from interlace_workers.child.merging.plain import Guard, compiled
from interlace_workers.child.merging.reading import PlainUnpickler
from interlace_workers.child.merging.slab import NotMergeable, Slab
from interlace_workers.child.writing import output
from interlace_workers.order import Order

Tell = Callable[[int, FrameKind, bytes], None]
_FIELDS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
_FORWARD = (type(None), bool, int, float, str)


@dataclass(eq=False)
class Member:
    """One job, and its descriptors."""

    order: Order
    payload: int
    result: int
    events: int
    logs: int
    times: list[float] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Block(Mediator):  # type: ignore[misc]
    """A member's block. The forward ends with the last block that waits for anything of it: nobody sees the rest."""

    def handle(self, provider: str, value: Any) -> Any:
        try:
            value = super().handle(provider, value)
        except Exception as error:  # noqa: BLE001 - as `defer_exceptions` does
            self.exception, self.pending = error, None
        if not any(one.alive for one in self.interleaver.mediators):
            self.interleaver.defer_exceptions = False
            raise EarlyStopException
        return value


@dataclass(eq=False)
class Part:
    """A member's trace, read and found harmless."""

    member: Member
    mediator: Block
    guard: Guard
    frame: Any
    #: Model inputs by name, each [rows, tokens].
    fields: dict[str, torch.Tensor]
    #: Other keywords of the forward.
    forward: dict[str, Any]

    @property
    def rows(self) -> int:
        return int(self.fields["input_ids"].shape[0])

    @property
    def kin(self) -> tuple[Any, ...]:
        """Equal for traces that can share a forward."""
        shapes = tuple((name, value.shape[1], value.dtype) for name, value in sorted(self.fields.items()))
        return shapes, repr(sorted(self.forward.items()))


def run(model: HostedModel, members: Sequence[Member], adapters: Sequence[int], tell: Tell) -> None:
    """Run every member to DONE or FAILED. All of them want the same of the model, and the same ``adapters``."""
    try:
        model = environment.prepare(model, members[0].order, adapters)
        _refuse_unlike_rows(model)
    except Exception as error:  # noqa: BLE001 - alone, each is told what it is
        for member in members:
            _fail(member, error, tell)
        return
    shared = _storages(model)
    groups: dict[Any, list[Part]] = {}
    for member in members:
        with _apart_if_it_fails(member, tell):
            member.times.append(time.perf_counter())
            part = _read(model, member, shared)
            member.times.append(time.perf_counter())
            groups.setdefault(part.kin, []).append(part)
    taken = sharing.dimensions(model)
    for parts in sorted(groups.values(), key=len, reverse=True):
        for part in parts:
            tell(part.member.events, FrameKind.RUNNING, str(len(parts)).encode())
        try:
            _forward(model, parts, taken)
        except Exception as error:  # noqa: BLE001 - whatever a member's edits have led the model to, alone it is its own
            for part in parts:
                part.mediator.exception = part.mediator.exception or error
        for part in parts:
            with _apart_if_it_fails(part.member, tell):
                _finish(part, tell)


@contextlib.contextmanager
def _apart_if_it_fails(member: Member, tell: Tell) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - what it raised here it raises alone, too, and is told of there
        _fail(member, error, tell)


def _fail(member: Member, error: BaseException, tell: Tell) -> None:
    reason = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):  # nobody may wait for it any more
        tell(member.events, FrameKind.FAILED, reason.encode("utf-8", "backslashreplace"))


def _refuse_unlike_rows(model: HostedModel) -> None:
    """Raises NotMergeable for a model, or an adapter, of which it is not known that it treats each row by itself."""
    if (reason := sharing.why_alone(model)) is not None:
        raise NotMergeable(reason)
    for config in getattr(model.model._module, "peft_config", {}).values():
        if config.peft_type != "LORA" or config.alora_invocation_tokens or config.arrow_config:
            raise NotMergeable("an adapter other than a plain LoRA")


def _read(model: HostedModel, member: Member, shared: frozenset[int]) -> Part:
    """Raises NotMergeable, and whatever a payload that is no trace leads to."""
    order = member.order
    blob = trace.unpacked(member.payload, order)
    tracer = RequestModel.deserialize(blob, model.persistent, compress=False, unpickler=PlainUnpickler)
    if type(tracer) is not InterleavingTracer or type(tracer.fn) is not MethodType:
        raise NotMergeable("it is no plain trace")
    envoy = tracer.envoy
    if tracer.fn.__func__ is not TransformersModel._call or envoy.path != model.model.path:
        raise NotMergeable("it is no plain forward of the model")
    if envoy._edits:
        raise NotMergeable("the model is edited")
    fields, forward = _inputs(model, tracer)
    frame = tracer.info.frame
    filename = frame.f_code.co_filename
    guard = Guard(member.lines.append, shared)
    code = compiled("".join(linecache.getlines(filename)), filename)
    mediator = Block(code, frame.f_globals, {**frame.f_locals, "__builtins__": guard.names})
    return Part(member, mediator, guard, frame, fields, forward)


def _inputs(model: HostedModel, tracer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The model's inputs as a run alone has them. Raises NotMergeable unless they are unpadded token ids."""
    if not model.model._batch_size(*tracer.args, **tracer.kwargs):
        raise NotMergeable("it has no direct input")
    args, keywords = model.model._batch([(tracer.args, tracer.kwargs)], tracer.fn)
    fields = {name: value for name, value in keywords.items() if isinstance(value, torch.Tensor)}
    forward = {name: value for name, value in keywords.items() if name not in fields}
    ids = fields.get("input_ids")
    plain = fields.keys() <= _FIELDS and all(type(one) in _FORWARD for one in forward.values())
    if args or ids is None or not plain:
        raise NotMergeable("its input is not token ids, or its keywords are not plain")
    for value in fields.values():
        if value.dim() != 2 or value.shape != ids.shape or value.is_floating_point() or not value.numel():
            raise NotMergeable("its inputs are not of one shape")
    if "attention_mask" in fields and not fields["attention_mask"].bool().all():
        raise NotMergeable("its input is padded")
    return fields, forward


def _forward(model: HostedModel, parts: Sequence[Part], taken: frozenset[int]) -> None:
    """One forward for all; an error of one block is left on its mediator. Raises what the model raises."""
    rows = sum(part.rows for part in parts)
    length = int(parts[0].fields["input_ids"].shape[1])
    total = rows
    near = {length - 1, length, length + 1, 2 * length - 1, 2 * length}
    while total in taken or total in near:
        total += 1  # so that no other dimension is taken for the batch
    slab, start = Slab(model.model, total), 0
    for part in parts:
        part.mediator.batch_group = [start, part.rows]
        start += part.rows
    filling = [parts[0].fields] * (total - rows)
    inputs = {
        name: torch.cat([*(part.fields[name] for part in parts), *(one[name][:1] for one in filling)])
        for name in parts[0].fields
    }
    interleaver = model.model.interleaver
    interleaver.batcher = slab
    try:
        _start(interleaver, parts)
        if not any(part.mediator.alive for part in parts):
            return
        with interleaver, saved_tensors_hooks(_not_kept, _not_there):
            result = model.model._call(**inputs, **parts[0].forward)
            interleaver.handle("result", result)
    finally:
        for part in parts:
            _unwind(part.mediator)
        interleaver.cancel()


def _not_kept(_: torch.Tensor) -> None:
    """What an operation keeps for the way back: most of what a forward writes to, and no block can go that way."""


def _not_there(_: None) -> NoReturn:
    raise NotMergeable("a backward pass")


def _start(interleaver: Any, parts: Sequence[Part]) -> None:
    """Run each block up to the first value that it waits for."""
    interleaver.defer_exceptions = True
    for part in parts:
        try:
            part.mediator.start(interleaver)
        except Exception as error:  # noqa: BLE001 - as `defer_exceptions` does from there on
            part.mediator.exception = error
            part.mediator.pending = None
    interleaver.mediators = [part.mediator for part in parts]


def _unwind(mediator: Block) -> None:
    """End a block that still waits for a value which will not come: out of order, alone as here."""
    if mediator.alive and mediator.pending is not None:
        error, _ = dangling_unwind(mediator)
        mediator.exception = mediator.exception or error


def _finish(part: Part, tell: Tell) -> None:
    """Write what the block saved. Raises its error; one that stopped the run has none."""
    member, error = part.member, part.mediator.exception
    if error is not None and not isinstance(error, EarlyStopException):
        raise error
    member.times.append(time.perf_counter())
    kept = part.guard.saved
    scope = dict(part.frame.f_locals)
    scope |= {name: value for name, value in part.mediator.lcls.writes().items() if id(value) in kept}
    copies: dict[int, Any] = {}
    saved = {name: _owned(value, copies) for name, value in scope.items() if id(value) in kept}
    output.write(saved, member.result, member.order)
    member.times.append(time.perf_counter())
    with open(member.logs, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as logs:
        logs.writelines(member.lines)
    os.close(member.logs)
    tell(member.events, FrameKind.DONE, steps.encode(member.times))


def _owned(value: Any, copies: dict[int, Any]) -> Any:
    """A saved value whose tensors hold their own elements only, and none of the other rows."""
    if id(value) in copies:
        return copies[id(value)]
    if type(value) is torch.Tensor:
        owned: Any = value
        if value.untyped_storage().nbytes() != value.numel() * value.element_size():
            owned = value.detach().clone().requires_grad_(value.requires_grad)
    elif isinstance(value, dict):
        owned = value.copy()
        for key, one in value.items():
            owned[key] = _owned(one, copies)
    elif isinstance(value, (list, tuple)):
        values = [_owned(one, copies) for one in value]
        plain = type(value) in (list, tuple) or type(value).__module__ == "torch.return_types"
        owned = type(value)(values) if plain else type(value)(*values)
    else:
        return value
    copies[id(value)] = owned
    return owned


def _storages(model: HostedModel) -> frozenset[int]:
    """Where the memory of the model's own tensors begins."""
    module = model.model._module
    return frozenset(one.untyped_storage().data_ptr() for one in [*module.parameters(), *module.buffers()])
