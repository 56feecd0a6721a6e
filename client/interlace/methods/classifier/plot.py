"""What a person looks at before the second call, and what the second call has changed."""

from matplotlib.figure import Figure

from interlace.methods.classifier.spec import ShiftResult
from interlace.methods.shared.features import draw

_LETTERS = 76  # of a line
_KINDS = (("intended", "tab:blue"), ("worst_group", "tab:green"), ("spurious", "tab:red"))


def plot(result: ShiftResult, candidates: int = 8, contexts: int = 5) -> Figure:
    """Of a first call the first candidates with their contexts; of a second one the accuracies."""
    return _candidates(result, candidates, contexts) if result.candidates else _accuracies(result)


def _candidates(result: ShiftResult, most: int, contexts: int) -> Figure:
    shown = result.candidates[:most]
    wide, block = draw.width(_LETTERS) + 0.2, 0.16 * contexts + 0.35
    high = block * len(shown) + 0.1
    figure = Figure(figsize=(wide, high))
    for row, one in enumerate(shown):
        bottom = high - block * (row + 1)
        axes = figure.add_axes((0.1 / wide, bottom / high, draw.width(_LETTERS) / wide, 0.16 * contexts / high))
        axes.set_title(f"{one.place}, feature {one.feature}: effect {one.effect:+.3f}", fontsize=9, loc="left", pad=2)
        draw.contexts(axes, one.shown, contexts, _LETTERS)
    return figure


def _accuracies(result: ShiftResult) -> Figure:
    heads = list(dict.fromkeys(metric.split for metric in result.metrics))
    figure = Figure(figsize=(1.6 + 1.1 * len(heads), 3.0), layout="constrained")
    axes = figure.subplots()
    for number, (name, color) in enumerate(_KINDS):
        values = [result.metric(name, head).value for head in heads]
        places = [place + (number - 1) * 0.27 for place in range(len(heads))]
        bars = axes.bar(places, values, width=0.25, color=color, label=name.replace("_", " "))
        axes.bar_label(bars, [f"{value:.2f}"[1:] if value < 1 else "1" for value in values], fontsize=7)
    axes.axhline(1 / len(result.classes), color="0.5", linewidth=0.7, linestyle=":")
    axes.set_xticks(range(len(heads)), [head.replace(", ", ",\n") for head in heads], fontsize=8)
    axes.set(ylabel="accuracy", ylim=(0, 1.12))
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    return figure
