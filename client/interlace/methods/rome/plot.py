"""What an edit has changed, beside what was so before."""

from matplotlib.figure import Figure

from interlace.methods.base import Result

#: In the order of the bars; what was not judged has none.
_SHOWN = ("ES", "PS", "NS", "S", "ES_acc", "PS_acc", "NS_acc", "other_relations", "unrelated")


def plot(result: Result) -> Figure:
    """Bars of each score before and after, with 95 % intervals where there are such."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    names = [name for name in _SHOWN if any(one.name == name for one in result.metrics)]
    for split, shift in (("before", -0.2), ("after", 0.2)):
        of = {one.name: one for one in result.metrics if one.split == split}
        there = [(number + shift, of[name]) for number, name in enumerate(names) if name in of]
        axes.bar([x for x, _ in there], [one.value for _, one in there], 0.38, label=split)
        for x, one in there:
            if one.ci95 is not None:
                axes.plot([x, x], one.ci95, color="black", lw=1)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n", 1) for name in names], fontsize=7)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share")
    axes.legend(fontsize=7)
    return figure
