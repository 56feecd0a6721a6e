"""Read and change the states of a forward at places of `sites`, by plain hooks that are gone after the block."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from interlace.methods.shared.prompts import check_length
from interlace.methods.shared.sites import Place, first_of

Key = TypeVar("Key")
#: What a state [batch, tokens, width] becomes.
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Patch:
    """Put vectors into a state: ``values[i]`` at row ``rows[i]``, token ``positions[i]``."""

    place: Place
    #: [n]
    rows: Tensor
    #: [n]
    positions: Tensor
    #: [n, width]
    values: Tensor

    def __call__(self, state: Tensor) -> Tensor:
        changed = state.clone()
        device = state.device
        changed[self.rows.to(device), self.positions.to(device)] = self.values.to(device, state.dtype)
        return changed


@contextmanager
def captured(places: Mapping[Key, Place]) -> Iterator[dict[Key, Tensor]]:
    """The states at places, as each forward in the block leaves them: those of the last one."""
    states: dict[Key, Tensor] = {}

    def keep(key: Key) -> Change:
        def look(state: Tensor) -> Tensor:
            states[key] = state
            return state

        return look

    with altered([(place, keep(key)) for key, place in places.items()]):
        yield states


@contextmanager
def patched(patches: Sequence[Patch]) -> Iterator[None]:
    """Every forward in the block has these patches, in their order where they meet."""
    with altered([(one.place, one) for one in patches]):
        yield


@contextmanager
def altered(changes: Sequence[tuple[Place, Change]]) -> Iterator[None]:
    """Every forward in the block runs on with what ``changes`` make of its states.

    Hooks run in the order of ``changes``, and what is inside an inner block after what is in an outer one.
    """
    handles: list[Any] = []
    try:
        # The gate that `ssm_out` is seen without is the one that all other changes have left.
        for place, change in sorted(changes, key=lambda one: one[0].gate is not None):
            handles += _hooked(place, change)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(place: Place, change: Change) -> list[Any]:
    gate: list[Tensor] = []
    handles = []
    if place.gate is not None:
        part = place.gate.part

        def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            gate[:] = [functional.silu(output if part is None else output[..., part])]

        handles.append(place.gate.module.register_forward_hook(see))

    def changed(state: Tensor) -> Tensor:
        if gate:
            bare = torch.where(gate[0] == 0, torch.zeros_like(state), state / gate[0])
            new = change(bare)
            return state if new is bare else torch.where(new == bare, state, new * gate[0])
        if place.part is None:
            return change(state)
        old = state[..., place.part]
        new = change(old)
        if new is old:
            return state
        return torch.cat([state[..., : place.part.start], new, state[..., place.part.stop :]], -1)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        name, value = next(iter(kwargs.items()))
        return args, {**kwargs, name: changed(value)}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        state = changed(first_of(output))
        return (state, *output[1:]) if isinstance(output, tuple) else state

    if place.side == "input":
        handles.append(place.module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        handles.append(place.module.register_forward_hook(after))
    return handles


def by_length(rows: Sequence[Sequence[int]], most: int) -> Iterator[tuple[list[int], Tensor]]:
    """Token ids in batches of equal length, of up to ``most`` rows: (their numbers, ids [n, tokens]).

    Nothing is padded, so that a batch is to every model, a recurrent one too, what its rows are one by one.
    """
    lengths: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(number)
    for numbers in lengths.values():
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            yield some, torch.tensor([list(rows[number]) for number in some])


def last_logits(module: nn.Module, ids: Tensor, **more: Any) -> Tensor:
    """Logits at the last token of each row, [rows, vocabulary], in one forward without a cache.

    Raises InvalidRequest for no token, and for more than the model was made for, of which torch says an index only.
    """
    check_length(module, ids.shape[1], "A text")
    if "logits_to_keep" in inspect.signature(type(module).forward).parameters:
        more["logits_to_keep"] = 1  # the head is a fifth of a small model's work
    # Said, for transformers guesses a mask from tokens that are both padding and a beginning.
    mask = torch.ones_like(ids)
    logits: Tensor = module(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits[:, -1]
    return logits


class _PlaceReached(Exception):
    """The rest of the forward is of no interest."""


def state_at(module: nn.Module, ids: Tensor, place: Place) -> Tensor:
    """The state at a place, [rows, tokens, width], of a forward that ends there; gradients go through where they are
    enabled, and changes of enclosing blocks are in it."""
    found: list[Tensor] = []

    def keep(state: Tensor) -> Tensor:
        found.append(state)
        raise _PlaceReached

    with suppress(_PlaceReached), altered([(place, keep)]):
        last_logits(module, ids)
    return found[0]


def right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids as one batch, [rows, longest]. What is behind a row's end changes nothing in a causal model's states
    before it, neither by attention nor by a recurrence, and needs no mask."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in rows])
