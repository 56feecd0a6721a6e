"""What features say of labelled properties: coverage and board reconstruction (2408.00113, section 3).

The labels are tensors that somebody made; nothing of theirs is run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from interlace.methods.base import Metric, Opened, Table
from interlace.methods.sae.harvest import Harvester
from interlace.methods.sae.spec import EvalParams
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.protocol.errors import InvalidArtifact

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 4096  # positions that are counted at once


@dataclass(frozen=True)
class Labelled:
    """Texts with what is true at each of their positions."""

    corpus: Corpus
    #: For each text [positions, properties], 0 or 1.
    labels: "list[Tensor]"
    #: For each text [positions]: which count.
    counted: "list[Tensor]"
    #: Of the properties.
    names: tuple[str, ...]
    #: So many texts, the first, choose; the others are for how good the choice is.
    n_train: int

    @classmethod
    def of(cls, opened: Opened, context: int, n_train: int | None) -> "Labelled":
        """Raises InvalidArtifact, which says what is not as it must be."""
        tokens, labels, mask = (opened.tensors.get(name) for name in ("tokens", "labels", "mask"))
        if tokens is None or labels is None or labels.ndim != 3 or labels.shape[:2] != tokens.shape:
            raise InvalidArtifact(
                f"{opened.ref}: expected `tokens` [texts, positions] and `labels` [texts, positions, properties]."
            )
        if mask is not None and mask.shape != tokens.shape:
            raise InvalidArtifact(f"{opened.ref}: `mask` has the shape {list(mask.shape)}, not that of `tokens`.")
        if bool(((labels != 0) & (labels != 1)).any()):
            raise InvalidArtifact(f"{opened.ref}: `labels` holds other numbers than 0 and 1.")
        corpus = Corpus.of_tokens(opened, context)
        if len(corpus) != len(tokens) or len(corpus) < 2:
            raise InvalidArtifact(f"{opened.ref}: expected two texts or more, and a token in each.")
        lengths = [len(one) for one in corpus.sequences]
        counted = [
            torch.ones(n, dtype=torch.bool) if mask is None else mask[i, :n].bool() for i, n in enumerate(lengths)
        ]
        told = opened.config.get("names")
        names = tuple(str(one) for one in told) if isinstance(told, list) else ()
        if len(names) != labels.shape[2]:
            names = tuple(str(number) for number in range(labels.shape[2]))
        n_train = len(corpus) // 2 if n_train is None else n_train
        if not 0 < n_train < len(corpus):
            raise InvalidArtifact(f"train_texts is {n_train}; {opened.ref} has {len(corpus)} texts, for both parts.")
        return cls(corpus, [labels[i, :n] for i, n in enumerate(lengths)], counted, names, n_train)

    def harvest(self, harvester: Harvester, size: int, *, heldout: bool) -> "Iterator[tuple[Tensor, Tensor, Tensor]]":
        """Activations [n, d_in], labels [n, properties] and the text of each, of all positions that count."""
        first, end = (self.n_train, len(self.corpus)) if heldout else (0, self.n_train)
        for start in range(first, end, size):
            numbers = range(start, min(start + size, end))
            ids, mask = self.corpus.batch(numbers)
            kept = harvester.kept(mask)
            for row, number in enumerate(numbers):
                kept[row, : len(self.counted[number])] &= self.counted[number]
            states = harvester.states(ids)
            labels = torch.nn.utils.rnn.pad_sequence([self.labels[number] for number in numbers], batch_first=True)
            texts = torch.tensor(list(numbers))[:, None].expand_as(kept)
            of_rows = states[kept.to(states.device)].cpu(), labels[kept].float(), texts[kept]
            yield from zip(*(one.split(_ROWS) for one in of_rows), strict=True)


@dataclass(frozen=True)
class Found:
    metrics: tuple[Metric, ...]
    table: Table


def measure(dictionary: Dictionary, harvester: Harvester, labelled: Labelled, params: EvalParams, seed: int) -> Found:
    """Coverage and reconstruction, as the paper defines them and as its code counts them."""
    own = Dictionary(**{**vars(dictionary), "weights": {key: one.cpu() for key, one in dictionary.weights.items()}})
    thresholds = torch.tensor(params.thresholds)
    highest = _highest(own, harvester, labelled, params.model_batch)
    alive = torch.nonzero(highest > 0)[:, 0]
    levels = thresholds[:, None] * highest[alive]
    train = _count(own, harvester, labelled, params.model_batch, alive, levels, heldout=False)
    heldout = _count(own, harvester, labelled, params.model_batch, alive, levels, heldout=True)
    listed = (train.precision >= params.precision) & (train.fires[..., None] >= params.min_fires)
    rebuilt = _reconstruct(own, harvester, labelled, params.model_batch, alive, levels, listed)
    return Found(
        (*_coverage(train, heldout, seed), *_reconstruction(rebuilt, seed)),
        _table(train, alive, params.thresholds, labelled.names),
    )


@dataclass(frozen=True)
class Counts:
    """How often features and properties are on together, over [thresholds, alive features, properties]."""

    both: "Tensor"
    #: [thresholds, features]
    fires: "Tensor"
    #: [properties]
    positives: "Tensor"
    n: int

    @property
    def f1(self) -> "Tensor":
        """2 TP / (2 TP + FP + FN); 0 where there is nothing to be right about."""
        return 2 * self.both / (self.fires[..., None] + self.positives).clamp_min(1)

    @property
    def precision(self) -> "Tensor":
        return self.both / self.fires[..., None].clamp_min(1)

    @property
    def recall(self) -> "Tensor":
        return self.both / self.positives.clamp_min(1)


def _highest(dictionary: Dictionary, harvester: Harvester, labelled: Labelled, size: int) -> "Tensor":
    """Each feature's maximum on the texts that choose, [d_sae]."""
    highest = torch.zeros(dictionary.d_sae)
    for x, _, _ in labelled.harvest(harvester, size, heldout=False):
        if len(x):
            highest = torch.maximum(highest, dictionary.encode(x).amax(0))
    return highest


def _count(
    dictionary: Dictionary,
    harvester: Harvester,
    labelled: Labelled,
    size: int,
    alive: "Tensor",
    levels: "Tensor",
    *,
    heldout: bool,
) -> Counts:
    both = torch.zeros(*levels.shape, len(labelled.names))
    fires, positives, n = torch.zeros(levels.shape), torch.zeros(len(labelled.names)), 0
    for x, labels, _ in labelled.harvest(harvester, size, heldout=heldout):
        features = dictionary.encode(x)[:, alive]
        positives += labels.sum(0)
        n += len(x)
        for number, level in enumerate(levels):
            on = (features > level).float()
            both[number] += on.T @ labels
            fires[number] += on.sum(0)
    return Counts(both, fires, positives, n)


@dataclass(frozen=True)
class _Rebuilt:
    """Of each threshold, and last of the code's own choice: [choices, texts] of true and false answers."""

    #: Summed F1 of the boards of each text, and how many boards it has.
    f1: "Tensor"
    boards: "Tensor"
    #: [choices, 3] true positives, false positives, false negatives of all positions.
    pooled: "Tensor"


def _reconstruct(
    dictionary: Dictionary,
    harvester: Harvester,
    labelled: Labelled,
    size: int,
    alive: "Tensor",
    levels: "Tensor",
    listed: "Tensor",
) -> _Rebuilt:
    """Say that a property is there wherever a feature is on that it is listed for (Eq. 5), on the other texts."""
    lists = listed.float()
    n_choices, n_texts = len(levels) + 1, len(labelled.corpus)
    f1, boards = torch.zeros(n_choices, n_texts), torch.zeros(n_texts)
    pooled = torch.zeros(n_choices, 3, dtype=torch.double)
    for x, labels, texts in labelled.harvest(harvester, size, heldout=True):
        features = dictionary.encode(x)[:, alive]
        boards += torch.bincount(texts, minlength=n_texts)
        for number, said in enumerate(_said(features, levels, lists)):
            right = (said & (labels > 0)).sum(1)
            wrong, missed = said.sum(1) - right, labels.sum(1) - right
            whole = 2 * right + wrong + missed
            each = torch.where(whole > 0, 2 * right / whole.clamp_min(1), 1.0)
            f1[number].index_add_(0, texts, each)
            pooled[number] += torch.stack([right.sum(), wrong.sum(), missed.sum()]).double()
    return _Rebuilt(f1[:, labelled.n_train :], boards[labelled.n_train :], pooled)


def _said(features: "Tensor", levels: "Tensor", lists: "Tensor") -> "Iterator[Tensor]":
    """What is said of each position [n, properties]: for each threshold, and for the highest that each feature is over.

    The last is what the paper's code puts in place of its own last threshold: of those that a feature is over, the
    highest at which any property is listed for it.
    """
    useful = lists.sum(-1) > 0
    best = torch.full(features.shape, -1)
    for number, level in enumerate(levels):
        on = features > level
        best = torch.where(on & useful[number], number, best)
        yield on.float() @ lists[number] > 0
    together = torch.zeros(len(features), lists.shape[2])
    for number in range(len(levels)):
        together += (best == number).float() @ lists[number]
    yield together > 0


def _coverage(train: Counts, heldout: Counts, seed: int) -> "Iterator[Metric]":
    """Eq. 3: the mean over properties of the best F1 of any feature at any threshold.

    `coverage_shared_threshold` is what the paper's code takes: the threshold, one for all, with the best mean.
    Held out: with the features and thresholds that were best on the texts that chose.
    """
    n = len(train.positives)
    if not train.f1.shape[1]:
        for name in ("coverage", "coverage_shared_threshold"):
            yield Metric(name=name, value=0.0, unit="F1", n=n, split="train", seed=seed)
        return
    flat = train.f1.flatten(0, 1)
    best = flat.max(0)
    other = heldout.f1.flatten(0, 1).gather(0, best.indices[None])[0]
    for split, values in (("train", best.values), ("heldout", other)):
        ci = _interval(values)
        yield Metric(name="coverage", value=float(values.mean()), unit="F1", n=n, ci95=ci, split=split, seed=seed)
    per_threshold = train.f1.amax(1)
    shared = int(per_threshold.mean(1).argmax())
    chosen = train.f1[shared].argmax(0)
    other = heldout.f1[shared].gather(0, chosen[None])[0]
    for split, values in (("train", per_threshold[shared]), ("heldout", other)):
        ci, value = _interval(values), float(values.mean())
        yield Metric(name="coverage_shared_threshold", value=value, unit="F1", n=n, ci95=ci, split=split, seed=seed)


def _reconstruction(rebuilt: _Rebuilt, seed: int) -> "Iterator[Metric]":
    """Eq. 5: the mean over boards of F1, at the best threshold; pooled: of all squares at once, as the paper's code."""
    n = int(rebuilt.boards.sum())
    mean = rebuilt.f1[:-1].sum(1) / max(n, 1)
    best = int(mean.argmax())
    used = rebuilt.boards > 0
    ci = _interval(rebuilt.f1[best, used] / rebuilt.boards[used])
    of_boards = partial(Metric, unit="F1", n=n, split="heldout", seed=seed)
    yield of_boards(name="board_reconstruction", value=float(mean[best]), ci95=ci)
    right, wrong, missed = rebuilt.pooled.unbind(1)
    pooled = 2 * right / (2 * right + wrong + missed).clamp_min(1)
    yield of_boards(name="board_reconstruction_pooled", value=float(pooled.max()))


def _interval(values: "Tensor") -> tuple[float, float] | None:
    """1.96 standard errors about the mean of independent values."""
    if len(values) < 2:
        return None
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def _table(counts: Counts, alive: "Tensor", thresholds: tuple[float, ...], names: tuple[str, ...]) -> Table:
    """Each property's best feature on the texts that chose."""
    rows: list[tuple[float | int | str | bool | None, ...]] = []
    if len(alive):
        n_features = counts.f1.shape[1]
        best = counts.f1.flatten(0, 1).max(0)
        for number, name in enumerate(names):
            t, feature = divmod(int(best.indices[number]), n_features)
            place = (t, feature, number)
            of = (float(best.values[number]), float(counts.precision[place]), float(counts.recall[place]))
            rows.append((name, int(alive[feature]), thresholds[t], *of, int(counts.positives[number])))
    columns = ("property", "feature", "threshold", "f1", "precision", "recall", "positives")
    return Table(name="properties", columns=columns, rows=tuple(rows))
