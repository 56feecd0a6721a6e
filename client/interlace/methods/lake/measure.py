"""Distances of several models' weights, matrix by matrix, so that never more than one of each is in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.methods.lake.tree import Geometry
from interlace.methods.shared.weights import Matrix, Weights, energy_rank
from interlace.protocol.errors import InvalidArtifact

PERMUTATIONS = 32


def geometry(models: Sequence[Weights], names: Sequence[str], seed: int, *, ranks: bool = True) -> Geometry:
    """All distances; ranks, which take the longest, may be left out and are 0 then.

    Raises InvalidArtifact for a model that lacks one of the matrices.
    """
    n = len(models)
    generator = torch.Generator().manual_seed(seed)
    squared, rank, between, singular = (torch.zeros(n, n, dtype=torch.float64) for _ in range(4))
    norms, kurtosis = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    null = torch.zeros(PERMUTATIONS, n, n, dtype=torch.float64)
    distinct = torch.ones(n, dtype=torch.float64)
    for name in names:
        matrices = [_needed(model, name) for model in models]
        stacked = _alike(matrices)
        norms += stacked.double().square().sum((1, 2))
        kurtosis += torch.tensor([one.kurtosis for one in matrices], dtype=torch.float64) / len(names)
        distinct = torch.minimum(distinct, torch.tensor([one.distinct for one in matrices], dtype=torch.float64))
        spectra = torch.stack([one.spectrum for one in matrices]).double()
        sketches = torch.stack([one.sketch for one in matrices])
        for i in range(n):
            squared[i] += (stacked - stacked[i]).double().square().sum((1, 2))
            if ranks:
                rank[i, i:] += energy_rank(sketches[i:] - sketches[i])
            between[i] += (spectra - spectra[i]).square().sum(1)
            singular[i] += (spectra.square().sum(1) * spectra[i].square().sum()).sqrt()
        null += _permuted(stacked, generator)
    spread = null.std(0).clamp_min(1e-12)
    z = (null.mean(0) - squared) / spread
    return Geometry(
        squared=squared,
        rank=rank.triu() + rank.triu(1).T,
        spectral=(between / singular.clamp_min(1e-30)).sqrt(),
        z=torch.minimum(z, z.T),
        norms=norms,
        kurtosis=kurtosis,
        distinct=distinct,
    )


def _permuted(stacked: Tensor, generator: torch.Generator) -> Tensor:
    """[permutations, n, n]: squared distances with the rows of the second permuted.

    Two models that began apart have their hidden units in no common order: any order of one's rows is as good as
    another (Zhu et al., 2502.12292). Columns stay, and with them whatever inputs have in common.
    """
    flat = stacked.double().flatten(1)
    lengths = flat.square().sum(1)
    rows = []
    for _ in range(PERMUTATIONS):
        order = torch.randperm(stacked.shape[1], generator=generator)
        rows.append(lengths[:, None] + lengths[None, :] - 2 * flat @ stacked[:, order].double().flatten(1).T)
    return torch.stack(rows)


def _needed(model: Weights, name: str) -> Matrix:
    matrix = model.matrix(name)
    if matrix is None:
        raise InvalidArtifact(f"{model.name} has no matrix that fits {name} of this model: leave it out.")
    return matrix


def _alike(matrices: Sequence[Matrix]) -> Tensor:
    """[n, m, k]: the matrices themselves, or the sketches of all where of one no more is there."""
    wholes = [one.whole for one in matrices if one.whole is not None]
    return torch.stack(wholes if len(wholes) == len(matrices) else [one.sketch for one in matrices])
