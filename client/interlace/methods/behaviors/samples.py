"""Which tokens of texts are samples: those that the model foresees, and not by copying."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from interlace.methods.base import Report
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.sites import Sites


@dataclass(frozen=True)
class Chosen:
    """One sample."""

    text: int
    #: Of the token that is foreseen.
    position: int
    #: -log P, nats.
    loss: float
    #: What it is foreseen from.
    before: tuple[int, ...]
    token: int


def chosen(
    sites: Sites,
    corpus: Corpus,
    report: Report,
    *,
    ce_max: float,
    skip_induction: bool,
    count: int,
    before: int,
    size: int,
) -> tuple[list[Chosen], int]:
    """Up to ``count`` samples, drawn by the seed and in the order of the texts; and how many there were."""
    found: list[tuple[int, int, float]] = []
    read = 0
    for ids, mask in corpus.batches(size):
        losses = _losses(sites, ids, report)
        fits = (losses < ce_max) & mask[:, 1:]
        for row, place in fits.nonzero().tolist():
            if not skip_induction or not _repeats(ids[row].tolist(), place + 1):
                found.append((read + row, place + 1, float(losses[row, place])))
        read += len(ids)
        if report.stopping:
            break
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(report.seed))[:count]
    picked = [found[number] for number in sorted(order.tolist())]
    return [_sample(corpus.sequences[text], text, position, loss, before) for text, position, loss in picked], len(
        found
    )


def _sample(row: Tensor, text: int, position: int, loss: float, before: int) -> Chosen:
    start = max(0, position - before)
    return Chosen(text, position, loss, tuple(row[start:position].tolist()), int(row[position]))


def _losses(sites: Sites, ids: Tensor, report: Report) -> Tensor:
    """-log P of each token but the first, [texts, positions - 1], on the CPU."""
    report.count(forwards=1, tokens=ids.numel())
    device = next(sites.module.parameters()).device
    with torch.no_grad():
        own = ids.to(device)
        # A mask of ones: what fills up a text comes after it, where a causal model does not look.
        logits = sites.module(input_ids=own, attention_mask=torch.ones_like(own), use_cache=False).logits.float()
    return functional.cross_entropy(logits[:, :-1].mT, own[:, 1:], reduction="none").cpu()


def _repeats(ids: Sequence[int], position: int) -> bool:
    """Whether the token before ``position`` was followed by the one there earlier on."""
    pair = ids[position - 1], ids[position]
    return any((ids[at - 1], ids[at]) == pair for at in range(1, position))
