"""`lake.compare`: two models by their weights, by what they say of the same texts, and by features of a dictionary."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Metric, Opened, Report, Table
from interlace.methods.lake.measure import geometry
from interlace.methods.lake.spec import CompareParams, CompareResult
from interlace.methods.lake.texts import Reader, positions, reading
from interlace.methods.shared import capture, intervals
from interlace.methods.shared import weights as _weights
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.sites import Place, Sites, evaluating
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

_BEHAVIOUR = (("kl", "nats/token"), ("kl_back", "nats/token"), ("js", "nats/token"), ("top1_agreement", "fraction"))


def run(model: Any, params: CompareParams, report: Report) -> CompareResult:
    """See `CompareParams`. Raises InvalidArtifact for what is not of the model's architecture."""
    one = None if params.one is None else report.open(params.one)
    other = report.open(params.other)
    with evaluating(model) as module, torch.no_grad():
        metrics, layers = _by_weights(model, one, other, report)
        tables, warnings = [layers], []
        if other.kind == "sketch":
            warnings.append("A sketch reads no texts: the two are compared by weights alone.")
        else:
            compared = _Behaviour(model, module, one, other, params, report)
            metrics += compared.metrics()
            if compared.dictionary is not None:
                more, features = compared.features(params.top)
                metrics, tables = [*metrics, more], [*tables, features]
    return CompareResult(metrics=tuple(metrics), tables=tuple(tables), warnings=tuple(warnings))


def _by_weights(model: Any, one: Opened | None, other: Opened, report: Report) -> tuple[list[Metric], Table]:
    names = _weights.names_of(model)
    pair = [_weights.hosted(model) if one is None else _weights.of_artifact(model, one)]
    pair.append(_weights.of_artifact(model, other))
    rows = []
    for name in names:
        a, b = (weights.matrix(name) for weights in pair)
        if a is None or b is None:
            raise InvalidArtifact(f"{other.ref} has no matrix that fits {name} of this model.")
        whole = a.whole is not None and b.whole is not None
        x, y = (a.whole, b.whole) if whole else (a.sketch, b.sketch)
        assert x is not None
        assert y is not None
        scale = float((x.norm() * y.norm()).clamp_min(1e-30))
        rank = int(_weights.energy_rank(a.sketch - b.sketch))
        mean = float((x - y).abs().mean()) if whole else None
        distance = float((x - y).norm()) / scale**0.5
        rows.append((name, distance, mean, float((x * y).sum()) / scale, rank, a.kurtosis, b.kurtosis))
    found = geometry(pair, names, report.seed)
    columns = ("matrix", "relative_distance", "mean_abs", "cosine", "rank", "kurtosis_one", "kurtosis_other")
    metrics = [
        Metric(name="relative_distance", value=float(found.relative[0, 1]), n=len(names)),
        Metric(name="spectral_distance", value=float(found.spectral[0, 1]), n=len(names)),
        Metric(name="z_related", value=float(found.z[0, 1]), unit="standard deviations", n=len(names)),
    ]
    return metrics, Table(name="layers", columns=columns, rows=tuple(rows))


class _Behaviour:
    """What both say of the probes, token by token."""

    def __init__(
        self,
        model: Any,
        module: nn.Module,
        one: Opened | None,
        other: Opened,
        params: CompareParams,
        report: Report,
    ) -> None:
        context = min(params.context, positions(module) or params.context)
        self._probes = [_ids(model.tokenizer, text, context) for text in report.texts(params.probes)]
        self._probes = [ids for ids in self._probes if ids.shape[1] > 1]
        if not self._probes:
            raise InvalidRequest("No text of `params.probes` has two tokens: there is nothing to compare by.")
        device = next(module.parameters()).device
        self._probes = [ids.to(device) for ids in self._probes]
        self.dictionary = None if params.sae is None else Dictionary.of(report.open(params.sae, "sae"))
        self._place = None if self.dictionary is None else _place(model, self.dictionary, params.sae or "")
        self._read = []
        for opened in (one, other):
            with reading(model, module, opened) as reader:
                self._read.append(self._said(reader))
        tokens = sum(ids.shape[1] for ids in self._probes)
        report.count(forwards=2 * len(self._probes), tokens=2 * tokens)

    def _said(self, reader: Reader) -> list[tuple[Tensor, Tensor | None]]:
        """Of each probe: log-probabilities, and features where there is a dictionary."""
        found = []
        for ids in self._probes:
            if self.dictionary is None or self._place is None:
                found.append((reader(ids).cpu(), None))
                continue
            with capture.captured({"at": self._place}) as states:
                said = reader(ids).cpu()
            found.append((said, self.dictionary.encode(states["at"][0].cpu())))
        return found

    def metrics(self) -> list[Metric]:
        """Means over probes, each a mean over its tokens."""
        values: dict[str, list[float]] = {name: [] for name, _ in _BEHAVIOUR}
        losses: tuple[list[float], list[float]] = ([], [])
        for ids, (p, _), (q, _) in zip(self._probes, *self._read, strict=True):
            middle = torch.logaddexp(p, q) - math.log(2)
            values["kl"].append(_kl(p, q))
            values["kl_back"].append(_kl(q, p))
            values["js"].append((_kl(p, middle) + _kl(q, middle)) / 2)
            values["top1_agreement"].append(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
            following = ids[0, 1:].cpu()
            for said, kept in ((p, losses[0]), (q, losses[1])):
                kept.append(float(-said[:-1].gather(-1, following[:, None]).mean()))
        named = [(name, unit, values[name]) for name, unit in _BEHAVIOUR]
        named += [("loss_one", "nats/token", losses[0]), ("loss_other", "nats/token", losses[1])]
        return [_metric(name, unit, found) for name, unit, found in named]

    def features(self, top: int) -> tuple[Metric, Table]:
        """How alike features are on average, and those that differ most."""
        means = [torch.cat([features for _, features in said if features is not None]).mean(0) for said in self._read]
        apart = means[1] - means[0]
        order = apart.abs().argsort(descending=True)[:top].tolist()
        cosine = _rounded(float(torch.nn.functional.cosine_similarity(means[0], means[1], dim=0)))
        rows = tuple((one, *(_rounded(float(of[one])) for of in (*means, apart))) for one in order)
        metric = Metric(name="feature_cosine", value=cosine, n=int(apart.shape[0]))
        return metric, Table(name="features", columns=("feature", "one", "other", "difference"), rows=rows)


def _kl(p: Tensor, q: Tensor) -> float:
    """Mean over tokens of KL(p || q), of log-probabilities."""
    return float((p.exp() * (p - q)).sum(-1).mean())


def _rounded(value: float) -> float:
    """To 5 digits: the last bits of a forward hang on where in memory its weights lie."""
    return float(f"{value:.5g}")


def _metric(name: str, unit: str, values: Sequence[float]) -> Metric:
    mean, interval = intervals.mean([_rounded(one) for one in values])
    return Metric(name=name, value=mean, unit=unit, n=len(values), ci95=interval)


def _ids(tokenizer: Any, text: str, context: int) -> Tensor:
    return torch.tensor([tokenizer(text)["input_ids"][:context]])


def _place(model: Any, dictionary: Dictionary, name: str) -> Place:
    """Raises InvalidRequest where a dictionary does not say what layer it is of."""
    layer = dictionary.metadata.get("layer")
    if not isinstance(layer, int):
        raise InvalidRequest(f"{name} does not say what layer it is of, in its `metadata`.")
    return Sites.of(model).place(str(dictionary.metadata.get("site") or "resid_post"), layer)
