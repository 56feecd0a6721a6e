"""What a classifier says of pictures: whether they have the style, and show what they should."""

from collections.abc import Sequence

from torch import Tensor

from interlace.methods.base import Metric
from interlace.methods.shared.intervals import mean
from interlace.methods.shared.judge import Judge


def judged(
    judge: Judge, pixels: Tensor, split: str, style: str, plain: str, contents: Sequence[str]
) -> tuple[Metric, ...]:
    """Mean probabilities: of the style, of the plain one (if it has a name), of each picture's content (if named)."""
    found = [("style", judge.chance(pixels, style))]
    if plain:
        found.append(("plain_style", judge.chance(pixels, plain)))
    if contents:
        by_name = {name: judge.chance(pixels, name) for name in dict.fromkeys(contents)}
        own = [float(by_name[name][number]) for number, name in enumerate(contents)]
    rows = [(name, some.tolist()) for name, some in found] + ([("content", own)] if contents else [])
    metrics = []
    for name, values in rows:
        middle, interval = mean(values)
        metrics.append(Metric(name=name, value=middle, unit="probability", n=len(values), ci95=interval, split=split))
    return tuple(metrics)
