"""A vector for each sample, such that samples are alike which the model foresees alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Report
from interlace.methods.behaviors.samples import Chosen
from interlace.methods.shared.capture import by_length
from interlace.methods.shared.circuits.attribution import Attributor, Batch
from interlace.methods.shared.circuits.metrics import LogitMetric
from interlace.methods.shared.circuits.splice import Splice


def gradients(measure: LogitMetric, samples: Sequence[Chosen], dims: int, nonzeros: int, report: Report) -> Tensor:
    """[samples, dims]: the gradient of m for the weights of blocks, projected; one backward a sample."""
    module = measure.sites.module
    weights = learned(module)
    dice = torch.Generator().manual_seed(report.seed)
    # A random sign is one of 2 x dims places: the second half is taken off from the first.
    into = [torch.randint(2 * dims, (nonzeros, one.numel()), generator=dice, dtype=torch.int32) for one in weights]
    found = []
    for one in weights:
        one.requires_grad_(True)
    try:
        for number, sample in enumerate(samples):
            with torch.enable_grad():
                m = measure(torch.tensor([sample.before]), [number])
                slopes = torch.autograd.grad(m.sum(), weights, allow_unused=True)
            report.count(backwards=1)
            both = torch.zeros(2 * dims)
            for slope, columns in zip(slopes, into, strict=True):
                if slope is not None:
                    flat = slope.detach().float().flatten().cpu()
                    for column in columns:
                        both.index_add_(0, column, flat)
            found.append(both[:dims] - both[dims:])
            report.progress(number + 1, len(samples))
            if report.stopping:
                break
    finally:
        for one in weights:
            one.requires_grad_(False)
    return torch.stack(found)


def learned(module: nn.Module) -> list[nn.Parameter]:
    """The weights that are of no embedding, no head and no norm, each once."""
    apart: set[int] = set()
    for part in module.modules():
        if isinstance(part, nn.Embedding) or "Norm" in type(part).__name__:
            apart |= {id(one) for one in part.parameters(recurse=False)}
    head: Any = getattr(module, "get_output_embeddings", lambda: None)()
    apart |= {id(one) for one in head.parameters()} if head is not None else set()
    return [one for one in module.parameters() if id(one) not in apart and one.is_floating_point()]


@dataclass(frozen=True)
class FeatureVectors:
    """Vectors of features of all spliced places."""

    splice: Splice
    measure: LogitMetric
    #: Times the gradient of m for them.
    of_effects: bool
    #: The last tokens, one behind the other; None: the sum over tokens.
    last: int | None

    def of(self, samples: Sequence[Chosen], size: int, report: Report) -> Tensor:
        """[samples, width]"""
        found: dict[int, Tensor] = {}
        for numbers, ids in by_length([one.before for one in samples], size):
            for number, row in zip(numbers, self._batch(Batch(numbers, ids, None)), strict=True):
                found[number] = row
            report.progress(len(found), len(samples))
            if report.stopping:
                break
        return torch.stack([found[number] for number in sorted(found)]) if len(found) == len(samples) else _some(found)

    def _batch(self, batch: Batch) -> Tensor:
        attributor = Attributor(self.splice, self.measure)
        runs = attributor.runs(batch)
        if self.of_effects:
            values = [one.features for one in attributor.atp(batch, runs).values()]
        else:
            values = [runs.clean[name].features for name in self.splice.names]
        return torch.cat([self._pooled(one.detach().float().cpu()) for one in values], -1)

    def _pooled(self, values: Tensor) -> Tensor:
        """[rows, tokens, d_sae] -> [rows, width]"""
        if self.last is None:
            return values.sum(1)
        kept = torch.zeros(len(values), self.last, values.shape[-1])
        some = values[:, -self.last :]
        kept[:, self.last - some.shape[1] :] = some
        return kept.flatten(1)


def _some(found: dict[int, Tensor]) -> Tensor:
    """Of a run that was cancelled: a row of nan for each sample that was not reached."""
    width = len(next(iter(found.values())))
    rows = torch.full((max(found) + 1, width), torch.nan)
    for number, row in found.items():
        rows[number] = row
    return rows
