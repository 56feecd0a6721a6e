"""What the numbers of a state are: its own, or the features of a dictionary and what the dictionary leaves over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from interlace.methods.shared.features.dictionary import Dictionary


class Unit(NamedTuple):
    """One mediator: some of a place's state."""

    site: str
    layer: int
    #: A token from 0; None for all.
    position: int | None
    #: Of the basis' numbers, -1 for the last; None for all of the state.
    number: int | None = None


class Basis(Protocol):
    """How a state [rows, tokens, width] is made of numbers [rows, tokens, k]."""

    def size(self, width: int) -> int:
        """k"""

    def moved(self, state: Tensor, donor: Tensor, weight: Tensor) -> Tensor:
        """The state with each number as far on its way to the donor's as ``weight`` [..., k or 1] says, 0 to 1."""

    def parts(self, slope: Tensor, own: Tensor, donor: Tensor) -> Tensor:
        """What each number's way to the donor's is worth at a slope of the state, [rows, tokens, k]."""


class Plain:
    """The state's own numbers."""

    def size(self, width: int) -> int:
        return width

    def moved(self, state: Tensor, donor: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(state)
        return state * (1 - weight) + donor * weight  # exact where the weight is 0 or 1

    def parts(self, slope: Tensor, own: Tensor, donor: Tensor) -> Tensor:
        return slope * (donor - own)


@dataclass(frozen=True)
class Coded:
    """Features of a dictionary, and as the last number its error: x = decode(f) + e (2403.19647, Eq. 1).

    Decoding is linear, so that a feature's change moves the state along its decoder row, and all changes together with
    the error's give the donor.
    """

    dictionary: Dictionary

    def size(self, width: int) -> int:
        return self.dictionary.d_sae + 1

    def moved(self, state: Tensor, donor: Tensor, weight: Tensor) -> Tensor:
        if weight.shape[-1] == 1:
            return Plain().moved(state, donor, weight)
        gap = self.gap(state, donor)
        weight = weight.to(gap)
        rest = (donor - state).to(gap) - gap @ self._rows()
        return state + ((gap * weight[..., :-1]) @ self._rows() + weight[..., -1:] * rest).to(state)

    def parts(self, slope: Tensor, own: Tensor, donor: Tensor) -> Tensor:
        gap, rows = self.gap(own, donor).to(slope), self._rows().to(slope)
        rest = (slope * (donor - own - gap @ rows)).sum(-1, keepdim=True)
        return torch.cat([(slope @ rows.mT) * gap, rest], -1)

    def gap(self, state: Tensor, donor: Tensor) -> Tensor:
        """What each feature changes by, [..., d_sae]."""
        return self.dictionary.encode(donor) - self.dictionary.encode(state)

    def _rows(self) -> Tensor:
        """[d_sae, width]: what one more of a feature adds to the state."""
        rows = self.dictionary.weights["W_dec"]
        return rows / rows.norm(dim=-1, keepdim=True) if self.dictionary.is_rescaled else rows


def spread(units: Sequence[Unit], values: Tensor, tokens: int, size: int) -> Tensor:
    """The weight [tokens, size or 1] that has each unit's value [units] at the unit, and 0 elsewhere.

    All units are of one family: of one token each or of all, of one number each or of all.
    """
    whole = units[0].number is None
    numbers = torch.tensor([0 if unit.number is None else unit.number for unit in units], device=values.device)
    if units[0].position is None:
        line = values.new_zeros(1 if whole else size).index_put((numbers,), values)
        return line.expand(tokens, -1)
    positions = torch.tensor([int(unit.position or 0) for unit in units], device=values.device)
    return values.new_zeros(tokens, 1 if whole else size).index_put((positions, numbers), values)


def by_place(units: Sequence[Unit]) -> dict[tuple[str, int], list[int]]:
    """The units' numbers by their site and layer."""
    found: dict[tuple[str, int], list[int]] = {}
    for number, unit in enumerate(units):
        found.setdefault((unit.site, unit.layer), []).append(number)
    return found
