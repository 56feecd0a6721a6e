"""The logit lens as a heat map: blocks from below, the tokens that they would say."""

from typing import Any

from matplotlib.figure import Figure

from interlace.methods.base import Result


def plot(result: Result, prompt: int = 0) -> Figure:
    """The likeliest token behind each block at each position of one prompt; bright where it is sure."""
    readings = result.table("readings").rows
    rows: list[tuple[Any, ...]] = [row for row in readings if row[0] == prompt and row[3] == 0]
    layers, positions = sorted({row[2] for row in rows}), sorted({row[1] for row in rows})
    grid: list[list[float]] = [[float("nan")] * len(positions) for _ in layers]
    figure = Figure(figsize=(1.6 + 1.1 * len(positions), 1.2 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    middle = (min(row[5] for row in rows) + max(row[5] for row in rows)) / 2
    for row in rows:
        x, y = positions.index(row[1]), layers.index(row[2])
        grid[y][x] = row[5]
        color = "white" if row[5] > middle else "black"
        axes.text(x, y, repr(row[4])[1:-1], ha="center", va="center", fontsize=8, color=color)
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="YlGn")
    axes.set_xticks(range(len(positions)), [str(one) for one in positions])
    axes.set_yticks(range(len(layers)), [str(one) for one in layers])
    axes.set_xlabel("position")
    axes.set_ylabel("block")
    figure.colorbar(image, label="log-probability (nats)")
    return figure
