"""ROME: u = C^-1 k, a value that says the new object, and the rank-one edit that writes the value where the key is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import ArtifactName, Metric, Report, Table
from interlace.methods.rome import keys, scores, values
from interlace.methods.rome.keys import Covariance
from interlace.methods.rome.scores import Judge, Judged
from interlace.methods.rome.spec import Request, RomeParams, RomeResult
from interlace.methods.rome.values import Found
from interlace.methods.shared import edits as _edits
from interlace.methods.shared.edits import Edit
from interlace.methods.shared.sites import Projection, Sites, evaluating

_METHOD = "edit.rome@2"


@dataclass
class _Made:
    """What the run has made so far."""

    artifacts: list[ArtifactName] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    after: list[Judged] = field(default_factory=list)
    unrelated: list[list[scores.Score]] = field(default_factory=list)
    requests: list[tuple[Any, ...]] = field(default_factory=list)
    curve: list[tuple[Any, ...]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    condition: float | None = None


def run(model: Any, params: RomeParams, report: Report) -> RomeResult:
    """See `RomeParams`. Raises InvalidRequest for a site or a layer that the model has not."""
    with evaluating(model) as module:
        sites = Sites.of(module)
        site = params.site
        if site == "auto":
            site = "mixer_out" if "mixer_out" in sites.names else "mlp_out"
        return _Rome(module, model.tokenizer, site, sites.projection(site, params.layer), params, report).run()


class _Rome:
    def __init__(
        self, module: nn.Module, tokenizer: Any, site: str, projection: Projection, params: RomeParams, report: Report
    ) -> None:
        self._module = module
        self._tokenizer = tokenizer
        self._site = site
        self._projection = projection
        self._params = params
        self._report = report
        self._judge = Judge(module, tokenizer, params.batch, report)
        self._made = _Made()

    def run(self) -> RomeResult:
        params, made = self._params, self._made
        covariance = self._covariance()
        prefixes = values.sampled_prefixes(self._module, self._tokenizer, params, self._report)
        first = [self._judge.request(one) for one in params.requests]
        requests = scores.known_only(params.requests, first, really=params.filter_known)
        before = [self._judge.request(one) for one in requests] if params.filter_known else first
        knew = self._judge.kept(params.unrelated)
        unrelated = [
            one for one, score in zip(params.unrelated, knew, strict=True) if score.first or not params.filter_known
        ]
        for number, request in enumerate(requests):
            if self._report.stopping:
                made.warnings.append(f"Cancelled after {number} of {len(requests)} requests.")
                break
            before_it = made.edits if params.apply == "together" else []
            edit = self._edit(number, request, covariance, prefixes, before_it)
            if params.apply == "each":
                self._judged([edit], [request], unrelated, f"{request.subject}: {request.target_new}")
            made.edits.append(edit)
            self._report.progress(number + 1, len(requests))
        done = requests[: len(made.edits)]
        if params.apply == "together" and made.edits:
            self._judged(made.edits, done, unrelated, f"{len(done)} facts")
        return self._result(before[: len(done)], unrelated, knew, covariance)

    def _covariance(self) -> Covariance | None:
        params, made = self._params, self._made
        if params.covariance is not None:
            opened = self._report.open(params.covariance, "data")
            return Covariance.of(opened, self._site, params.layer, self._projection.d_in)
        if params.texts is None:
            return None
        texts = self._report.texts(params.texts)
        found = keys.covariance(
            self._module, self._tokenizer, self._projection, texts, params.most_tokens, params.batch, self._report
        )
        if found.tokens < 4 * self._projection.d_in:
            made.warnings.append(
                f"The covariance of {self._projection.d_in} dimensions is of {found.tokens:,} tokens only: the ridge "
                "decides much of it."
            )
        if params.keep_covariance:
            config = {"method": _METHOD, "site": self._site, "layer": params.layer}
            config |= {"tokens": found.tokens, "corpus": found.corpus}
            made.artifacts.append(
                self._report.artifact("data", {"covariance": found.matrix}, config, name="covariance")
            )
        return found

    def _edit(
        self,
        number: int,
        request: Request,
        covariance: Covariance | None,
        prefixes: Sequence[str],
        before: Sequence[Edit],
    ) -> Edit:
        with _edits.added(self._module, before):
            found = values.found(
                self._module, self._tokenizer, self._projection, request, prefixes, self._params, self._report
            )
        direction = self._direction(number, found, covariance)
        lambda_ = (found.delta.double() / (found.bare_key.double() @ direction)).float()
        strength = float(lambda_.norm() * direction.norm())
        last = found.curve[-1]
        self._made.requests.append((request.subject, request.target_new, len(found.curve), *last[1:], strength))
        self._made.curve += [(number, *step) for step in found.curve]
        return Edit.rank_one(direction.float(), lambda_, self._site, self._params.layer)

    def _direction(self, number: int, found: Found, covariance: Covariance | None) -> Tensor:
        """u, of length 1: [d_in], fp64."""
        key = found.key.double()
        if self._params.key == "random":
            generator = torch.Generator().manual_seed(self._report.seed * 1_000_003 + number)
            key = torch.randn(len(key), generator=generator, dtype=torch.float64)
        elif self._params.key == "covariance":
            assert covariance is not None  # the params' validator
            key, self._made.condition = covariance.solved(key, self._params.ridge)
        return key / key.norm()

    def _judged(self, edits: Sequence[Edit], requests: Sequence[Request], unrelated: Sequence[Any], name: str) -> None:
        made = self._made
        with _edits.added(self._module, edits):
            made.after += [self._judge.request(one) for one in requests]
            if unrelated:
                made.unrelated.append(self._judge.kept(unrelated))
        facts = [{"prompt": one.prompt, "subject": one.subject, "target_new": one.target_new} for one in requests]
        tensors, config = _edits.pack(edits, self._module, method=_METHOD, facts=facts)
        made.artifacts.append(self._report.artifact("edit", tensors, config, name=name[:80]))

    def _result(
        self,
        before: Sequence[Judged],
        unrelated: Sequence[Any],
        knew: Sequence[scores.Score],
        covariance: Covariance | None,
    ) -> RomeResult:
        made = self._made
        metrics: list[Metric] = [*scores.metrics(before, "before"), *scores.metrics(made.after, "after")]
        if knew:
            metrics.append(scores.kept_metric([knew], "before"))
        if made.unrelated:
            metrics.append(scores.kept_metric(made.unrelated, "after"))
        columns = ("subject", "target_new", "steps", "loss", "nll", "kl", "p_new", "strength")
        rows = [
            (*row, _p(one, "ES", "new"), _p(two, "ES", "new"))
            for row, one, two in zip(made.requests, before, made.after, strict=True)
        ]
        return RomeResult(
            metrics=tuple(metrics),
            tables=(
                Table(name="requests", columns=(*columns, "p_before", "p_after"), rows=tuple(rows)),
                Table(
                    name="optimisation",
                    columns=("request", "step", "loss", "nll", "kl", "p_new"),
                    rows=tuple(made.curve),
                ),
            ),
            artifacts=tuple(made.artifacts),
            warnings=tuple(made.warnings),
            condition=made.condition,
            cov_tokens=0 if covariance is None else covariance.tokens,
        )


def _p(judged: Judged, *names: str) -> float | None:
    """The probability of the new object after the bare prompt."""
    return next((judged.scores[name][0].p for name in names if judged.scores.get(name)), None)
