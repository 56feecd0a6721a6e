"""`feature.describe`: top contexts, direct effects on the logits and a histogram, for some features of a dictionary."""

from typing import Any

from interlace.methods.base import Metric, Report, Table
from interlace.methods.feature.spec import DescribeParams, DescribeResult
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.contexts import Watched, described
from interlace.methods.shared.features.described import Description
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: DescribeParams, report: Report) -> DescribeResult:
    """Read all texts once. Raises InvalidRequest for a place or a feature that there is not."""
    dictionary = Dictionary.of(report.open(params.sae, "sae"))
    told = dictionary.metadata
    layer = told.get("layer") if params.layer is None else params.layer
    site = params.site or str(told.get("site") or "resid_post")
    if site != "embed" and not isinstance(layer, int):
        raise InvalidRequest(f"{params.sae} does not say what layer it is of; expected `layer`.")
    skip = int(told.get("skip_first") or 0) if params.skip_first is None else params.skip_first
    sites = Sites.of(model)
    corpus = Corpus.of(report, model, params.data, params.context)
    found = described(
        sites,
        getattr(model, "tokenizer", None),
        [Watched(sites.place(site, layer), dictionary, params.features)],
        corpus,
        report,
        params.reading,
        model_batch=params.model_batch,
        skip_first=skip,
    )
    return DescribeResult(
        metrics=tuple(_metrics(found)),
        tables=tables(found),
        warnings=tuple(_warnings(found, corpus, params, skip)),
        features=tuple(found),
        tokens=sum(len(one) for one in corpus.sequences),
    )


def _metrics(found: list[Description]) -> list[Metric]:
    return [Metric(name=f"fires_{one.feature}", value=one.fires, unit="fraction", n=one.n) for one in found]


def _warnings(found: list[Description], corpus: Corpus, params: DescribeParams, skip: int) -> list[str]:
    said = []
    whole = sum(max(0, len(one) - skip) for one in corpus.sequences)
    if found[0].n < whole:
        said.append(f"Cancelled after {found[0].n} of {whole} positions.")
    if silent := [one.feature for one in found if not one.fires]:
        said.append(f"Never on in these texts: {silent[:20]}.")
    if params.reading.logits and not any(one.promoted for one in found):
        said.append(f"{found[0].place} does not write to the residual stream: there are no direct logit effects.")
    return said


def tables(found: list[Description]) -> tuple[Table, ...]:
    """The same as rows: features, contexts, logits, histogram."""
    features = [(one.feature, one.n, one.fires, one.most, one.mean) for one in found]
    contexts = [
        (one.feature, rank, at.text, at.position, at.peak, *_around(at.tokens, at.at))
        for one in found
        for rank, at in enumerate(one.contexts)
    ]
    logits = [
        (one.feature, side, rank, token, effect)
        for one in found
        for side, some in (("promoted", one.promoted), ("suppressed", one.suppressed))
        for rank, (token, effect) in enumerate(some)
    ]
    bins = [
        (one.feature, one.edges[number], one.edges[number + 1], count)
        for one in found
        for number, count in enumerate(one.counts)
    ]
    return (
        Table(name="features", columns=("feature", "positions", "fires", "max", "mean_on"), rows=tuple(features)),
        Table(
            name="contexts",
            columns=("feature", "rank", "text", "position", "activation", "before", "token", "after"),
            rows=tuple(contexts),
        ),
        Table(name="logits", columns=("feature", "side", "rank", "token", "effect"), rows=tuple(logits)),
        Table(name="histogram", columns=("feature", "low", "high", "positions"), rows=tuple(bins)),
    )


def _around(tokens: tuple[str, ...], at: int) -> tuple[str, str, str]:
    return "".join(tokens[:at]), tokens[at], "".join(tokens[at + 1 :])
