"""Clusters at a glance: how large they are, what is foreseen in them, and the features that carry them."""

from matplotlib.figure import Figure

from interlace.methods.behaviors.spec import ClusterResult

_WORD = 16  # letters of a token that are shown
_FEATURES = 24


def plot(result: ClusterResult, most: int = 16) -> Figure:
    """Sizes on the left; on the right, where there are circuits, what zeroing each feature costs in each cluster."""
    shown = result.clusters[:most]
    nodes = {(one.place, one.feature): 0.0 for cluster in shown for one in cluster.nodes}
    for cluster in shown:
        for one in cluster.nodes:
            nodes[one.place, one.feature] = max(nodes[one.place, one.feature], abs(one.effect))
    best = sorted(nodes, key=lambda one: -nodes[one])[:_FEATURES]
    figure = Figure(figsize=(9 if best else 5, 1.4 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(1, 1.4)) if best else [figure.subplots()]
    axes[0].barh(range(len(shown)), [one.size for one in shown], color="tab:blue")
    names = [", ".join(repr(token)[1:-1][:_WORD] for token, _ in one.tokens[:3]) for one in shown]
    axes[0].set_yticks(range(len(shown)), names, fontsize=8)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("samples")
    if best:
        grid = [
            [{(one.place, one.feature): one.effect for one in cluster.nodes}.get(node, 0.0) for node in best]
            for cluster in shown
        ]
        limit = max(abs(value) for row in grid for value in row)
        image = axes[1].imshow(grid, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes[1].set_xticks(range(len(best)), [f"{place} {one}" for place, one in best], rotation=90, fontsize=6)
        axes[1].set_yticks([])
        figure.colorbar(image, label="nats that zeroing it costs")
    return figure
