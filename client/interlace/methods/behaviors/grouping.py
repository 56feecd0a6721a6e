"""Vectors in clusters, by scikit-learn, on one thread: the same for the same seed."""

import warnings
from typing import Any

import numpy
import torch
from torch import Tensor

from interlace.protocol.errors import InvalidRequest

_STARTS = 10  # of k-means; the best is kept
_NEIGHBORS = 10


def grouped(vectors: Tensor, clusters: int, clustering: str, seed: int) -> numpy.ndarray[Any, Any]:
    """The cluster of each row, [n]; cluster 0 is the largest. Rows are compared by their directions."""
    cluster, limits = _libraries()
    rows = unit(vectors).numpy()
    with limits(1):
        if clustering == "kmeans":
            found = cluster.KMeans(clusters, n_init=_STARTS, random_state=seed).fit_predict(rows)
        elif clustering == "neighbors":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Graph is not fully connected")  # clusters may be apart
                found = cluster.SpectralClustering(
                    clusters,
                    affinity="nearest_neighbors",
                    n_neighbors=min(_NEIGHBORS, len(rows)),
                    random_state=seed,
                    n_init=_STARTS,
                ).fit_predict(rows)
        else:
            cosine = numpy.clip(rows @ rows.T, -1, 1).astype(numpy.float64)
            alike = 1 - numpy.arccos(cosine) / numpy.pi
            found = cluster.SpectralClustering(
                clusters, affinity="precomputed", random_state=seed, n_init=_STARTS
            ).fit_predict(alike)
    return _by_size(found)


def silhouette(vectors: Tensor, groups: numpy.ndarray[Any, Any], seed: int) -> float | None:
    """How much closer rows are to their own cluster than to the next, by cosine, -1 to 1; None for less than two."""
    _, limits = _libraries()
    from sklearn.metrics import silhouette_score

    if not 2 <= len(set(groups.tolist())) < len(groups):
        return None
    with limits(1):
        return float(silhouette_score(unit(vectors).numpy(), groups, metric="cosine", random_state=seed))


def shuffled(vectors: Tensor, seed: int) -> Tensor:
    """Each dimension's values dealt anew to the rows: what is left has no clusters but those of chance."""
    dice = torch.Generator().manual_seed(seed)
    return vectors.gather(0, torch.rand(vectors.shape, generator=dice).argsort(0))


def unit(vectors: Tensor) -> Tensor:
    """Rows of norm 1; those of 0 stay."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _by_size(found: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    names, first, counts = numpy.unique(found, return_index=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda one: (-counts[one], first[one]))
    ranks = numpy.empty(int(names.max()) + 1, dtype=numpy.int64)
    for rank, one in enumerate(order):
        ranks[names[one]] = rank
    sorted_: numpy.ndarray[Any, Any] = ranks[found]
    return sorted_


def _libraries() -> tuple[Any, Any]:
    try:
        from sklearn import cluster
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InvalidRequest("`behaviors.cluster` needs scikit-learn where it runs: pip install scikit-learn") from None
    return cluster, threadpool_limits
