"""`sae.eval`: what a dictionary keeps of activations and of the model's loss, and what its features say of labels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from interlace.methods.base import Metric, Report
from interlace.methods.sae import boards
from interlace.methods.sae.harvest import Harvester
from interlace.methods.sae.spec import EvalParams, EvalResult
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

_RESAMPLES = 500  # of the texts, for an interval
#: What is summed over a text's positions.
_SUMS = ("n", "l0", "left", "variance", "rebuilt", "along", "next", "original", "spliced", "zero", "mean")


def run(model: Any, params: EvalParams, report: Report) -> EvalResult:
    """Measure a dictionary on texts, and on labelled ones where there are labels."""
    dictionary = Dictionary.of(report.open(params.sae, "sae"))
    harvester = _harvester(model, dictionary, params, report)
    corpus = Corpus.of(report, model, params.data, params.context)
    measured = _measure(dictionary, harvester, corpus, params.model_batch)
    metrics, tables, warnings = list(_metrics(measured, report.seed)), [], []
    tokens = 5 * sum(len(one) for one in corpus.sequences)
    if params.labels is not None and not report.stopping:
        labelled = boards.Labelled.of(report.open(params.labels, "data"), params.context, params.train_texts)
        found = boards.measure(dictionary, harvester, labelled, params, report.seed)
        metrics += found.metrics
        tables.append(found.table)
        tokens += 3 * sum(len(one) for one in labelled.corpus.sequences)
    elif params.labels is not None:
        warnings.append("Cancelled before the labelled texts were looked at.")
    return EvalResult(metrics=tuple(metrics), tables=tuple(tables), warnings=tuple(warnings), tokens=tokens)


def _harvester(model: Any, dictionary: Dictionary, params: EvalParams, report: Report) -> Harvester:
    """At the place that the params name, or else the dictionary. Raises InvalidRequest where neither does."""
    told = dictionary.metadata
    layer = told.get("layer") if params.layer is None else params.layer
    if not isinstance(layer, int):
        raise InvalidRequest(f"{params.sae} does not say what layer it is of; expected `layer`.")
    site = params.site or str(told.get("site") or "resid_post")
    skip = int(told.get("skip_first") or 0) if params.skip_first is None else params.skip_first
    harvester = Harvester.of(model, site, layer, report, skip)
    width = harvester.states(torch.zeros(1, 2, dtype=torch.long)).shape[-1]
    if width != dictionary.d_in:
        raise InvalidRequest(f"{site} of layer {layer} has {width} dimensions; {params.sae} is of {dictionary.d_in}.")
    return harvester


@dataclass(frozen=True)
class _Measured:
    #: [texts, `_SUMS`], in double precision.
    sums: "Tensor"
    #: How often each feature fired.
    fired: "Tensor"


def _measure(dictionary: Dictionary, harvester: Harvester, corpus: Corpus, size: int) -> _Measured:
    mean = _mean(harvester, corpus, size)
    rows, fired = [], torch.zeros(dictionary.d_sae, dtype=torch.long)
    for ids, mask in corpus.batches(size):
        kept = harvester.kept(mask)
        of_states, of_features = _of_states(dictionary, harvester.states(ids), kept, mean)
        fired += of_features
        nexts = mask[:, 1:].double().sum(1)
        changes = {
            "original": None,
            "spliced": _splice(kept, lambda x: dictionary.decode(dictionary.encode(x))),
            "zero": _splice(kept, torch.zeros_like),
            "mean": _splice(kept, lambda x: mean.to(x.dtype).expand_as(x)),
        }
        losses = [_losses(harvester.logits(ids, change), ids, mask) for change in changes.values()]
        rows.append(torch.stack([*of_states, nexts, *losses], 1))
    return _Measured(torch.cat(rows), fired)


def _mean(harvester: Harvester, corpus: Corpus, size: int) -> "Tensor":
    """The mean activation, [d_in]."""
    total, n = torch.zeros(()), 0
    for ids, mask in corpus.batches(size):
        states = harvester.states(ids)
        kept = harvester.kept(mask).to(states.device)
        total = total.to(states.device) + states[kept].double().sum(0)
        n += int(kept.sum())
    if not n:
        raise InvalidRequest(f"No text is longer than the {harvester.skip_first} positions of skip_first.")
    return (total / n).float()


def _of_states(
    dictionary: Dictionary, states: "Tensor", kept: "Tensor", mean: "Tensor"
) -> "tuple[list[Tensor], Tensor]":
    """`_SUMS` up to `along`, each [texts], and how often each feature fired."""
    mask = kept.to(states.device)
    features = dictionary.encode(states)
    rebuilt = dictionary.decode(features)
    on = (features > 0) & mask[..., None]
    each = (
        torch.ones_like(states[..., 0]),
        (features > 0).sum(-1),
        (states - rebuilt).pow(2).sum(-1),
        (states - mean).pow(2).sum(-1),
        rebuilt.pow(2).sum(-1),
        (states * rebuilt).sum(-1),
    )
    return [(one.double() * mask).sum(1).cpu() for one in each], on.sum((0, 1)).cpu()


def _splice(kept: "Tensor", made: "Callable[[Tensor], Tensor]") -> "Callable[[Tensor], Tensor]":
    """What a state becomes: another one where positions are kept."""

    def change(state: "Tensor") -> "Tensor":
        new = made(state.float()).to(state.dtype)
        return torch.where(kept.to(state.device)[..., None], new, state)

    return change


def _losses(logits: "Tensor", ids: "Tensor", mask: "Tensor") -> "Tensor":
    """Nats that each text's tokens cost after the first, [texts]."""
    ids = ids.to(logits.device)
    each = functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (each.double() * mask[:, 1:].to(logits.device)).sum(1).cpu()


#: name: (unit, its value of the sums by name).
_OF_SUMS: "dict[str, tuple[str, Callable[[dict[str, Tensor]], Tensor]]]" = {
    "l0": ("features", lambda s: s["l0"] / s["n"]),
    "variance_explained": ("fraction", lambda s: 1 - s["left"] / s["variance"]),
    # gamma of 2404.16014, Eq. 10: below 1 is shrinkage.
    "gamma": ("1", lambda s: s["rebuilt"] / s["along"]),
    "loss": ("nats/token", lambda s: s["original"] / s["next"]),
    "loss_with_sae": ("nats/token", lambda s: s["spliced"] / s["next"]),
    "loss_zero_ablated": ("nats/token", lambda s: s["zero"] / s["next"]),
    "loss_mean_ablated": ("nats/token", lambda s: s["mean"] / s["next"]),
    "loss_recovered": ("fraction", lambda s: (s["zero"] - s["spliced"]) / (s["zero"] - s["original"])),
    "loss_recovered_over_mean": ("fraction", lambda s: (s["mean"] - s["spliced"]) / (s["mean"] - s["original"])),
}


def _metrics(measured: _Measured, seed: int) -> list[Metric]:
    """Intervals are of resampled texts."""
    sums, n_texts = measured.sums, len(measured.sums)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_texts, (_RESAMPLES, n_texts), generator=generator)
    weights = torch.stack([torch.bincount(row, minlength=n_texts) for row in drawn]).double()
    resampled = dict(zip(_SUMS, (weights @ sums).unbind(1), strict=True))
    whole = dict(zip(_SUMS, sums.sum(0), strict=True))
    metrics = []
    for name, (unit, value) in _OF_SUMS.items():
        low, high = value(resampled).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
        n = int(whole["next"] if name.startswith("loss") else whole["n"])
        interval = (low, high) if n_texts > 1 else None
        figure = float(value(whole))
        metrics.append(Metric(name=name, value=figure, unit=unit, n=n, ci95=interval, split="heldout", seed=seed))
    alive = float((measured.fired > 0).double().mean())
    of_features = partial(Metric, unit="fraction", n=len(measured.fired), split="heldout", seed=seed)
    return [*metrics, of_features(name="alive", value=alive), of_features(name="dead", value=1 - alive)]
