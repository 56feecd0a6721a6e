"""Features as a person reads them: contexts on the left, how often it is on and what it says on the right."""

from matplotlib.figure import Figure

from interlace.methods.feature.spec import DescribeResult
from interlace.methods.shared.features import draw

_MOST = 6  # features in one picture
_LETTERS = 70  # of a line


def plot(result: DescribeResult, features: list[int] | None = None, contexts: int = 8) -> Figure:
    """The first six, or those that are named."""
    wanted = result.features[:_MOST]
    if features is not None:
        known = {one.feature: one for one in result.features}
        if strange := [one for one in features if one not in known]:
            raise LookupError(f"Feature {strange[0]} was not described; there are {sorted(known)}.")
        wanted = tuple(known[one] for one in features)
    lines, beside = draw.width(_LETTERS), 1.7
    wide, high = lines + 2 * beside + 2.0, 0.35 + (0.16 * contexts + 0.55) * len(wanted)
    figure = Figure(figsize=(wide, high))
    # Inches from the left: the lines must be as wide as their letters are.
    lefts, widths = (0.1, lines + 0.7, lines + beside + 1.8), (lines, beside, beside)
    for row, one in enumerate(wanted):
        bottom = high - 0.3 - (0.16 * contexts + 0.55) * (row + 1) + 0.55
        left, middle, right = (
            figure.add_axes((x / wide, bottom / high, width / wide, 0.16 * contexts / high))
            for x, width in zip(lefts, widths, strict=True)
        )
        left.set_title(f"{one.place}, feature {one.feature}", fontsize=9, loc="left")
        draw.contexts(left, one, contexts, _LETTERS)
        draw.histogram(middle, one)
        draw.logits(right, one)
    return figure
