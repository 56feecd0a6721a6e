"""When to stop: held-back questions are asked while the adapter is trained, and the update nearest to chance is kept.

Ours, not published. How many updates bring a concept to chance differs from model to model, and past them it is known
by being avoided: far below chance is knowledge, too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Table
from interlace.methods.elm import metrics, statistics
from interlace.methods.elm.adapter import Adapter
from interlace.methods.elm.language import Language
from interlace.methods.elm.spec import Evaluation, StopAtChance
from interlace.methods.shared import intervals

_COLUMNS = ("step", "mcq_acc", "mcq_chance_p", "retained_drop", "within_max_drop")
_SPLIT = "held_back"


class Watch:
    """What each look at the held-back questions found, and the weights of the best one."""

    def __init__(self, model: Language, adapter: Adapter, wish: StopAtChance, of: Evaluation) -> None:
        self._model, self._adapter, self._wish, self._of = model, adapter, wish, of
        self._chance = sum(1 / len(one.choices) for one in wish.erased) / len(wish.erased)
        with adapter.disabled():
            self._before = self._retained()
        self.looks: list[list[Any]] = []
        self._best: dict[str, Tensor] = {}

    def due(self, step: int, of: int) -> bool:
        return step % self._wish.every == 0 or step == of

    def look(self, step: int) -> bool:
        """Asks the model as it is, without dropout. Whether it is at chance by now, or below."""
        chosen = metrics.choose(self._model, self._wish.erased, self._of)
        n_right = sum(chosen.right)
        p = statistics.chance_p(n_right, [1 / k for k in chosen.choices])
        drop = self._before - self._retained()
        self.looks.append([step, n_right / len(chosen.right), p, drop, drop <= self._wish.max_drop])
        if self._nearest[0] == step:
            self._best = {name: one.detach().clone() for name, one in self._adapter.parameters.items()}
        return n_right <= self._chance * len(chosen.right)

    @property
    def _nearest(self) -> list[Any]:
        """The look whose weights are kept: nearest to chance, of those within `max_drop` if there are any."""
        return min(self.looks, key=lambda look: (not look[4], abs(look[1] - self._chance)))

    def restore(self) -> None:
        """The best weights are the adapter's again."""
        with torch.no_grad():
            for name, one in self._adapter.parameters.items():
                one.copy_(self._best[name])

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, beside `looks`."""
        return {f"best.{name}": one for name, one in self._best.items()}

    def resume(self, looks: list[list[Any]], tensors: Mapping[str, Tensor]) -> None:
        self.looks = [list(look) for look in looks]
        self._best = {name[len("best.") :]: one for name, one in tensors.items() if name.startswith("best.")}

    def table(self) -> Table:
        return Table(name="looks", columns=_COLUMNS, rows=tuple(tuple(look) for look in self.looks))

    def metrics(self, seed: int) -> Iterator[Metric]:
        """Of the update that is kept."""
        n = len(self._wish.erased)
        step, share, p, *_ = self._nearest
        yield Metric(name="kept_step", value=step, unit="updates", seed=seed)
        _, interval = intervals.share(round(share * n), n)
        split = f"{_SPLIT}/after"
        yield Metric(name="mcq_acc", value=share, unit="fraction", n=n, ci95=interval, split=split, seed=seed)
        yield Metric(name="mcq_chance_p", value=p, n=n, split=split, seed=seed)

    def warnings(self) -> Iterator[str]:
        """What the best look is not."""
        best = self._nearest
        last, share, *_ = self.looks[-1]
        if share > self._chance:
            yield (
                f"`stop_at_chance`: after {last} updates {share:.2f} of the held-back questions are still answered "
                f"right, where a guesser has {self._chance:.2f}; more `steps` may go on."
            )
        if not best[4]:
            yield (
                f"`stop_at_chance`: no look was within max_drop {self._wish.max_drop:g} of what is to stay; the "
                f"nearest to chance, after {best[0]} updates, is kept, with a drop of {best[3]:.3f}."
            )

    def _retained(self) -> float:
        """The share of held-back questions, of both kinds, on what is to stay that are answered right; 0 of none."""
        asked, of = self._wish.retained, self._of
        right = metrics.choose(self._model, asked.choices, of).right if asked.choices else []
        right = right + (metrics.recall(self._model, asked.cloze, of.batch)[0] if asked.cloze else [])
        return sum(right) / len(right) if right else 0.0
