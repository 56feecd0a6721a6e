"""`behaviors.cluster`: choose samples, make a vector of each, cluster them, find what carries each cluster."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.behaviors import grouping, vectors
from interlace.methods.behaviors.circuits import Carried, Circuits
from interlace.methods.behaviors.samples import Chosen, chosen
from interlace.methods.behaviors.spec import Cluster, ClusterParams, ClusterResult, Sample
from interlace.methods.shared.circuits.attribution import Attributor
from interlace.methods.shared.circuits.examples import saes_of
from interlace.methods.shared.circuits.metrics import LogitMetric
from interlace.methods.shared.circuits.splice import Splice
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.contexts import Watched, described, token_texts
from interlace.methods.shared.features.described import Description
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

_COMMONEST = 8  # tokens that are told of a cluster


def run(model: Any, params: ClusterParams, report: Report) -> ClusterResult:
    """Raises InvalidRequest where too few tokens are foreseen."""
    splice = None
    if params.saes is not None:
        opened = [(report.open(one.sae, "sae"), one.site, one.layer) for one in saes_of(params.saes)]
        splice = Splice.open(model, opened)
    sites = splice.sites if splice is not None else Sites.of(model)
    with evaluating(sites.module):
        return _Clustering(model, params, report, sites, splice).run()


@dataclass
class _Clustering:
    model: Any
    params: ClusterParams
    report: Report
    sites: Sites
    splice: Splice | None
    warnings: list[str] = field(default_factory=list)

    def run(self) -> ClusterResult:
        params, report = self.params, self.report
        corpus = Corpus.of(report, self.model, params.data, params.context)
        samples, there = chosen(
            self.sites,
            corpus,
            report,
            ce_max=params.ce_max,
            skip_induction=params.skip_induction,
            count=params.samples,
            before=params.before,
            size=params.model_batch,
        )
        if len(samples) <= params.clusters:
            raise InvalidRequest(
                f"{len(samples)} tokens of the texts are foreseen to {params.ce_max} nats; expected more than the "
                f"{params.clusters} clusters: give more texts, or a larger ce_max."
            )
        if len(samples) < params.samples:
            self.warnings.append(f"There are {there} samples; {params.samples} were asked for.")
        answers = torch.tensor([one.token for one in samples])
        measure = LogitMetric("neg_logprob", self.sites, report, answers, torch.full_like(answers, -1))
        rows = self._vectors(replace(measure, name="logit") if params.target == "logit" else measure, samples)
        samples, rows = self._reached(samples, rows)
        groups = grouping.grouped(rows, params.clusters, params.clustering, report.seed)
        dealt = grouping.shuffled(rows, report.seed)
        chance = grouping.grouped(dealt, params.clusters, params.clustering, report.seed)
        circuits = self._circuits(measure, samples, groups.tolist())
        clusters = self._clusters(samples, groups.tolist(), circuits)
        return ClusterResult(
            metrics=tuple(self._metrics(there, {"vectors": (rows, groups), "shuffled": (dealt, chance)})),
            tables=_tables(samples, groups.tolist(), chance.tolist(), clusters),
            artifacts=tuple(one.artifact for one in circuits if one.artifact is not None),
            warnings=tuple(self.warnings),
            clusters=tuple(clusters),
            features=tuple(self._shown(clusters, corpus)),
            tokens=self._tokens(corpus, samples),
        )

    def _vectors(self, measure: LogitMetric, samples: Sequence[Chosen]) -> Tensor:
        params = self.params
        if params.vectors == "param_grad":
            return vectors.gradients(measure, samples, params.dims, params.nonzeros, self.report)
        assert self.splice is not None
        made = vectors.FeatureVectors(self.splice, measure, params.vectors == "sae_effect", params.last)
        return made.of(samples, params.model_batch, self.report)

    def _reached(self, samples: list[Chosen], rows: Tensor) -> tuple[list[Chosen], Tensor]:
        """Those that a run which was cancelled has vectors of; samples without any direction are left out, too."""
        kept = [number for number, row in enumerate(rows) if bool(row.isfinite().all()) and bool((row != 0).any())]
        if len(kept) < len(samples):
            self.warnings.append(f"{len(samples) - len(kept)} of {len(samples)} samples have no vector.")
        if len(kept) <= self.params.clusters:
            raise InvalidRequest(f"{len(kept)} samples have a vector; expected more than {self.params.clusters}.")
        return [samples[number] for number in kept], rows[kept]

    def _circuits(self, measure: LogitMetric, samples: Sequence[Chosen], groups: Sequence[int]) -> list[Carried]:
        """What the answers of each of the largest clusters depend on most, by zeroing it."""
        if self.splice is None:
            return []
        answers = torch.tensor([one.token for one in samples])
        own = LogitMetric("neg_logprob", self.sites, self.report, answers, measure.others[: len(samples)])
        finder = Circuits(Attributor(self.splice, own), self.params, self.report)
        found, most = [], min(max(groups) + 1, self.params.circuits)
        for group in range(most):
            members = [number for number, one in enumerate(groups) if one == group][: self.params.circuit_samples]
            if self.report.stopping:
                self.warnings.append(f"Cancelled before the circuit of cluster {group}.")
                break
            found.append(finder.of(group, samples, members))
            self.report.progress(group + 1, most)
        return found

    def _clusters(self, samples: Sequence[Chosen], groups: Sequence[int], circuits: Sequence[Carried]) -> list[Cluster]:
        found = []
        for group in range(max(groups) + 1):
            own = [sample for sample, one in zip(samples, groups, strict=True) if one == group]
            carried = circuits[group] if group < len(circuits) else Carried()
            common = Counter(one.token for one in own).most_common(_COMMONEST)
            found.append(
                Cluster(
                    number=group,
                    size=len(own),
                    loss=sum(one.loss for one in own) / len(own),
                    tokens=tuple((self._text(token), count) for token, count in common),
                    exemplars=tuple(self._sample(one) for one in own[: self.params.exemplars]),
                    nodes=carried.nodes,
                    circuit=carried.artifact,
                    edges=carried.edges,
                )
            )
        return found

    def _text(self, token: int) -> str:
        return token_texts(getattr(self.model, "tokenizer", None), [token])[0]

    def _sample(self, one: Chosen) -> Sample:
        words = token_texts(getattr(self.model, "tokenizer", None), [*one.before, one.token])
        shown = words[:-1][-self.params.reading.before :]
        return Sample(text=one.text, position=one.position, before=tuple(shown), token=words[-1], loss=one.loss)

    def _shown(self, clusters: Sequence[Cluster], corpus: Corpus) -> list[Description]:
        """What the texts show of each feature of a circuit."""
        if self.splice is None or self.report.stopping:
            return []
        wanted: dict[str, set[int]] = {name: set() for name in self.splice.names}
        for cluster in clusters:
            for node in cluster.nodes:
                wanted[node.place].add(node.feature)
        watched = [
            Watched(self.splice[name].place, self.splice[name].dictionary, sorted(some))
            for name, some in wanted.items()
            if some
        ]
        return described(
            self.sites,
            getattr(self.model, "tokenizer", None),
            watched,
            corpus,
            self.report,
            self.params.reading,
            model_batch=self.params.model_batch,
            skip_first=max(one.skip_first for one in self.splice.coders),
        )

    def _metrics(self, there: int, ways: Mapping[str, tuple[Tensor, Any]]) -> list[Metric]:
        n = len(ways["vectors"][0])
        found = [Metric(name="samples", value=float(there), n=n)]
        for split, (rows, groups) in ways.items():
            value = grouping.silhouette(rows, groups, self.report.seed)
            if value is not None:
                found.append(Metric(name="silhouette", value=value, n=n, split=split))
        return found

    def _tokens(self, corpus: Corpus, samples: Sequence[Chosen]) -> int:
        return sum(len(one) for one in corpus.sequences) + sum(len(one.before) for one in samples)


def _tables(
    samples: Sequence[Chosen], groups: Sequence[int], chance: Sequence[int], clusters: Sequence[Cluster]
) -> tuple[Table, ...]:
    """``chance``: the clusters of the control, whose vectors' dimensions are each dealt anew to the samples."""
    rows = [
        (one.text, one.position, group, other, one.loss)
        for one, group, other in zip(samples, groups, chance, strict=True)
    ]
    nodes = [(one.number, node.place, node.feature, node.effect) for one in clusters for node in one.nodes]
    return (
        Table(name="samples", columns=("text", "position", "cluster", "shuffled", "loss"), rows=tuple(rows)),
        Table(name="nodes", columns=("cluster", "place", "feature", "effect"), rows=tuple(nodes)),
    )
