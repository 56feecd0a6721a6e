"""The figures of one day as pictures: docs/performance-latency.svg and docs/performance-merging.svg.

python benchmarks/plots.py [benchmarks/results/DATE]
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_HERE = Path(__file__).parent
_DOCS = _HERE.parent / "docs"
_COLOURS = ("#94a3b8", "#f59e0b", "#2563eb", "#059669")


def latency(figures: dict[str, Any]) -> None:
    """Local, stock and our client: medians, with the 95th percentile as a line above."""
    names = [name for name in ("local", "stock", "ours") if name in figures]
    heights = [figures[name]["p50_ms"] for name in names]
    tails = [[0] * len(names), [max(0, figures[name]["p95_ms"] - figures[name]["p50_ms"]) for name in names]]
    figure, axes = plt.subplots(figsize=(5, 3))
    bars = axes.bar(names, heights, yerr=tails, color=_COLOURS, capsize=4, width=0.6)
    axes.bar_label(bars, [f"{height:.0f}" for height in heights], label_type="center", color="white")
    axes.set_ylabel("ms, p50 and p95")
    axes.set_title("A minimal trace, 8 tokens, SmolLM2-135M", fontsize=10)
    _save(figure, axes, "performance-latency.svg")


def merging(figures: dict[str, Any]) -> None:
    """Requests a second of many clients: by hand, one at a time, merged."""
    by_hand = {f"by hand\n{size} a trace": rate for size, rate in figures["by_hand"].items()}
    rates = by_hand | {
        name: figures[part]["requests_per_second"] for name, part in (("one at\na time", "off"), ("merged", "on"))
    }
    figure, axes = plt.subplots(figsize=(5, 3))
    colours = [_COLOURS[0]] * len(by_hand) + [_COLOURS[1], _COLOURS[2]]
    bars = axes.bar(list(rates), list(rates.values()), color=colours, width=0.6)
    axes.bar_label(bars, [f"{rate:.1f}" for rate in rates.values()])
    axes.set_ylabel("traces a second")
    axes.set_title("32 stock clients of one tenant, 8 tokens, SmolLM2-135M", fontsize=10)
    _save(figure, axes, "performance-merging.svg")


def _save(figure: Any, axes: Any, name: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    figure.savefig(_DOCS / name, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main(folder: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "interlace"
    for name, draw in (("own_client", latency), ("merging", merging)):
        draw(json.loads((folder / f"{name}.json").read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else max((_HERE / "results").iterdir()))
