"""Pictures of described features: contexts as lines of shaded tokens, a histogram, the tokens that are raised."""

from typing import Any

from matplotlib.axes import Axes

from interlace.methods.shared.features.described import Context, Description

_SIZE = 7.5  # points of the type
_WIDE = 0.6  # of its size, a letter of DejaVu Sans Mono
#: Plain letters for what a token has that a line of a picture cannot.
_SHOWN = str.maketrans({"\n": "↵", "\t": "→", "\r": "↵", "$": "＄"})


def contexts(axes: Axes, one: Description, most: int = 8, letters: int = 70) -> None:
    """The strongest contexts, a line each, tokens shaded by the feature; the strongest token stands in one column."""
    axes.set_axis_off()
    shown = one.contexts[:most]
    axes.set(xlim=(0, letters), ylim=(max(len(shown), 1) + 0.5, -0.5))
    for number, context in enumerate(shown):
        axes.text(0, number, f"{context.peak:.2f}", fontsize=_SIZE, color="0.45", va="center", family="monospace")
        _line(axes, context, number, one.most or 1.0, letters)
    if not shown:
        axes.text(0, 0, "never on in these texts", fontsize=_SIZE, color="0.45", va="center")


def _line(axes: Axes, context: Context, row: int, most: float, letters: int) -> None:
    words = [word.translate(_SHOWN) for word in context.tokens]
    # A context that is too long loses its beginning: what comes before the strongest token explains it, the end less.
    room, start = int(letters * 0.72), context.at
    while start > 0 and sum(map(len, words[start - 1 : context.at])) + 6 <= room:
        start -= 1
    x = 6.0 + room - 6 - sum(map(len, words[start : context.at]))
    for word, value in zip(words[start:], context.activations[start:], strict=True):
        if x + len(word) > letters:
            break
        shade = max(0.0, min(1.0, value / most))
        if shade > 0:
            axes.axvspan(
                x, x + len(word), ymin=1 - (row + 0.95) / _rows(axes), ymax=1 - (row + 0.05) / _rows(axes),
                color="tab:orange", alpha=0.15 + 0.75 * shade, linewidth=0,
            )  # fmt: skip
        axes.text(x, row, word, fontsize=_SIZE, family="monospace", va="center")
        x += len(word)


def _rows(axes: Axes) -> float:
    low, high = axes.get_ylim()
    return abs(low - high)


def width(letters: int) -> float:
    """Inches of a line of so many letters."""
    return letters * _WIDE * _SIZE / 72


def histogram(axes: Axes, one: Description) -> None:
    """How often the feature has which value, where it is on."""
    if any(one.counts):
        axes.bar(
            one.edges[:-1], one.counts, width=one.most / len(one.counts), align="edge", color="tab:orange", log=True
        )
    axes.set_xlabel(f"where it is on: {one.fires:.2%} of {one.n:,} positions", fontsize=_SIZE)
    axes.set_ylabel("positions", fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 1)


def logits(axes: Axes, one: Description, most: int = 6) -> None:
    """The tokens that it raises and lowers most along the direct path."""
    rows: list[tuple[Any, float]] = [*one.promoted[:most], *reversed(one.suppressed[:most])]
    if not rows:
        axes.set_axis_off()
        return
    colors = ["tab:blue" if value > 0 else "tab:red" for _, value in rows]
    axes.barh(range(len(rows)), [value for _, value in rows], color=colors)
    names = [repr(str(token).translate(_SHOWN))[1:-1][:14] for token, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=_SIZE - 1, family="monospace")
    axes.invert_yaxis()
    axes.axvline(0, color="0.5", linewidth=0.6)
    axes.set_xlabel("logits for each unit of it", fontsize=_SIZE)
    axes.tick_params(axis="x", labelsize=_SIZE - 1)
