"""Activations where they are made: texts go through the model in batches, and what is at one place is kept, bounded."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interlace.methods.base import Report
from interlace.methods.shared.capture import altered
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.sites import Place, Sites, evaluating
from interlace.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_SEED = 2**63 - 1


class _PlaceReached(Exception):
    """The rest of the forward is of no interest."""


@dataclass(frozen=True)
class Harvester:
    """One place of one model."""

    module: Any
    place: Place
    report: Report
    #: Positions at a text's beginning that are left out.
    skip_first: int

    @classmethod
    def of(cls, model: Any, site: str, layer: int, report: Report, skip_first: int) -> "Harvester":
        """Raises InvalidRequest for a place that the model does not have."""
        sites = Sites.of(model)
        return cls(sites.module, sites.place(site, layer), report, skip_first)

    def kept(self, mask: "Tensor") -> "Tensor":
        """Which positions are activations to learn from or to measure, [texts, positions]."""
        kept = mask.clone()
        kept[:, : self.skip_first] = False
        return kept

    def states(self, ids: "Tensor") -> "Tensor":
        """What is at the place, [texts, positions, d_in], in float32; the forward ends there."""
        found: list[Tensor] = []

        def keep(state: "Tensor") -> "Tensor":
            found.append(state.detach().float())
            raise _PlaceReached

        with suppress(_PlaceReached):
            self._forward(ids, keep)
        return found[0]

    def logits(self, ids: "Tensor", change: Any = None) -> "Tensor":
        """What the model says, [texts, positions, vocabulary]; ``change`` makes another state of that at the place."""
        return self._forward(ids, change).logits.float()

    def _forward(self, ids: "Tensor", change: Any) -> Any:
        device = next(self.module.parameters()).device
        self.report.count(forwards=1, tokens=ids.numel())
        with torch.no_grad(), evaluating(self.module), altered([(self.place, change)] if change else []):
            ids = ids.to(device)
            # A mask of ones masks nothing: what fills up a text comes after it, where a causal model does not look.
            return self.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


@dataclass
class Rounds:
    """Shuffled activations in rounds: as many as the buffer holds are harvested, and used up in a shuffled order.

    A round is a function of the seed and of how many texts were used before it, and so can be had again.
    """

    corpus: Corpus
    harvester: Harvester
    seed: int
    #: Rows of a round, a multiple of the batch.
    size: int
    batch: int
    model_batch: int
    #: Texts that were used before this round.
    position: int = 0
    #: Batches of this round that were used.
    served: int = 0

    def __post_init__(self) -> None:
        self._after = self.position
        self._rows: Tensor | None = None
        self._order: Tensor | None = None

    def next(self) -> "Tensor":
        """[batch, d_in]"""
        if self._rows is None:
            self._fill()
        elif self.served == len(self._rows) // self.batch:
            self.position, self.served = self._after, 0
            self._fill()
        assert self._rows is not None
        assert self._order is not None
        self.served += 1
        return self._rows[self._order[(self.served - 1) * self.batch : self.served * self.batch]]

    def rows(self) -> "Tensor":
        """All of this round, [size, d_in]."""
        if self._rows is None:
            self._fill()
        assert self._rows is not None
        return self._rows

    @property
    def epochs(self) -> float:
        return self._after / len(self.corpus)

    def restart(self, position: int, served: int) -> None:
        """Go on after what `state` said."""
        self.position, self.served, self._after, self._rows = position, served, position, None

    def state(self) -> Mapping[str, int]:
        return {"position": self.position, "served": self.served}

    def _fill(self) -> None:
        """Texts until the round is full; what is over of the last ones is left out. Raises InvalidRequest."""
        position, have, rows = self.position, 0, self._rows
        empty_since = position
        while have < self.size:
            numbers = [self._number(position + i) for i in range(self.model_batch)]
            position += self.model_batch
            ids, mask = self.corpus.batch(numbers)
            found = self.harvester.states(ids)[self.harvester.kept(mask)]
            if rows is None:
                rows = torch.empty(self.size, found.shape[-1], device=found.device)
            taken = found[: self.size - have]
            rows[have : have + len(taken)] = taken
            have += len(taken)
            empty_since = position if len(taken) else empty_since
            if position - empty_since > len(self.corpus):
                raise InvalidRequest(f"No text is longer than the {self.harvester.skip_first} positions of skip_first.")
        assert rows is not None
        self._after, self._rows = position, rows
        self._order = torch.randperm(self.size, generator=_generator(self.seed, self.position)).to(rows.device)

    def _number(self, position: int) -> int:
        """Which text is the one at a position; each time round they come in another order."""
        epoch, place = divmod(position, len(self.corpus))
        cached: tuple[int, Tensor] | None = getattr(self, "_shuffled", None)
        if cached is None or cached[0] != epoch:
            cached = epoch, torch.randperm(len(self.corpus), generator=_generator(self.seed, -1 - epoch))
            self._shuffled = cached
        return int(cached[1][place])


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + number * 7919 + 17) % _LARGEST_SEED)
