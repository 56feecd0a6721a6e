"""The picture of an erasure: what was known before and after, on both topics, and how the losses went."""

from typing import Any

from interlace.methods.base import Metric, Result

_SHOWN = (("mcq_acc", "multiple choice"), ("cloze_acc", "cloze"), ("leak", "in samples"))
_WHENS = {"before": "#9aa5b1", "novice": "#e0b34d", "after": "#2f6f9f", "relearned": "#b4543f"}


def plot(result: Result, *, width: float = 9.0) -> Any:
    """A matplotlib figure of ``width`` inches: fractions with their 95 % intervals; losses by update."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, width * 0.38), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _fractions(left, result.metrics)
    table = result.table("losses")
    steps = [row[0] for row in table.rows]
    for at, name in enumerate(table.columns[1:], 1):
        values = [row[at] for row in table.rows]
        if any(value is not None for value in values):
            right.plot(steps, values, label=name.replace("_", " "), linewidth=1.3)
    right.set(xlabel="update", ylabel="nats a token", title="losses")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _fractions(axes: Any, metrics: tuple[Metric, ...]) -> None:
    found = {(one.name, *one.split.split("/")): one for one in metrics if "/" in one.split}
    groups = [
        (f"{topic}\n{label}", [found.get((name, topic, when)) for when in _WHENS])
        for topic in ("erased", "retained")
        for name, label in _SHOWN
        if (name, topic, "before") in found
    ]
    for number, (when, color) in enumerate(_WHENS.items()):
        bars = [(at, some[number]) for at, (_, some) in enumerate(groups)]
        there = [(at + (number - 1.5) * 0.2, one) for at, one in bars if one is not None]
        if not there:
            continue
        places, values = [place for place, _ in there], [one.value for _, one in there]
        axes.bar(places, values, 0.19, color=color, label=when)
        for place, one in there:
            if one.ci95 is not None:
                axes.plot([place, place], one.ci95, color="#333333", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=8)
    axes.set(ylim=(0, 1.05), ylabel="fraction right", title="what is known")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
