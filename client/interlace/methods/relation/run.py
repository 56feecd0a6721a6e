"""A relation as one affine map: its operator, what it says of held-out subjects, and what its inverse does to them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.relation.jacobian import Differentiator, subject_places
from interlace.methods.relation.spec import RelationParams, RelationResult, Sample
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.prompts import Prompt, first_token
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

_KINDS = ("faithfulness", "bias_only", "identity")


@dataclass(frozen=True)
class Query:
    """A subject as it is asked for, and what the model says."""

    sample: Sample
    prompt: Prompt
    #: The model's first choice.
    said: int
    known: bool


@dataclass(frozen=True)
class Operator:
    """Of one layer: z is about beta J h + b."""

    J: Tensor
    b: Tensor

    def answers(self, states: Tensor, beta: float) -> Tensor:
        """[n, d_model] of [n, d_model]"""
        return beta * states @ self.J.mT + self.b


def run(model: Any, params: RelationParams, report: Report) -> RelationResult:
    """See `RelationParams`. Raises InvalidRequest where the model answers too few subjects."""
    with evaluating(model):
        return _Relation(Sites.of(model), model.tokenizer, params, report).run()


class _Relation:
    def __init__(self, sites: Sites, tokenizer: Any, params: RelationParams, report: Report) -> None:
        self._sites = sites
        self._tokenizer = tokenizer
        self._params = params
        self._report = report
        self._device = next(sites.module.parameters()).device
        self._layers = _layers(params.layers, sites.n_layers)
        self._places = subject_places(sites, self._layers)
        self._last = sites.place("resid_post", sites.n_layers - 1)
        self._warnings: list[str] = []

    def run(self) -> RelationResult:
        order = random.Random(self._report.seed)
        samples = order.sample(self._params.samples, len(self._params.samples))
        screened = self._asked(samples, samples[: self._params.n_train + 1])
        known = [query.sample for query in screened if query.known]
        train = known[: self._params.n_train]
        if len(known) < self._params.n_train + 2:
            raise InvalidRequest(
                f"The model answers {len(known)} of {len(samples)} subjects; `n_train` and two held out need "
                f"{self._params.n_train + 2}. Give more samples, another template, or a smaller `n_train`."
            )
        tests = self._asked(known[self._params.n_train :], train)
        heldout = [query for query in tests if query.known]
        if len(heldout) < 2:
            raise InvalidRequest(f"After the training subjects' lines the model answers {len(heldout)} held-out ones.")
        if lost := len(samples) - len(train) - len(heldout):
            self._warnings.append(f"{lost} of {len(samples)} subjects are left out: the model does not answer them.")
        queries = self._asked(train, train)
        operators, error = self._operators(queries)
        states, answers = self._states(heldout)
        faithful = self._faithful(operators, states, heldout)
        best, beta = max(faithful, key=lambda key: (faithful[key]["faithfulness"].sum().item(), -key[0]))
        causal = self._causal(operators, states, answers, heldout, order)
        return RelationResult(
            metrics=(*self._metrics(faithful, (best, beta), causal), error),
            tables=(_table(faithful), _causes(causal), _subjects(self._tokenizer, screened, train, heldout)),
            artifacts=(self._kept(operators, best, beta, train),),
            warnings=tuple(self._warnings),
            layer=best,
            beta=beta,
            prompt=self._before(heldout[0].sample, train),
        )

    def _before(self, sample: Sample, shots: Sequence[Sample]) -> str:
        others = [one for one in shots if one != sample][: self._params.n_train] if self._params.icl else []
        lines = [f"{self._params.template.replace('{}', one.subject)} {one.object.strip()}\n" for one in others]
        return self._params.prefix + "".join(lines)

    def _asked(self, samples: Sequence[Sample], shots: Sequence[Sample]) -> list[Query]:
        """Each subject after the lines of ``shots``, its own left out."""
        prompts = []
        for one in samples:
            prompts.append(
                Prompt.filled(self._tokenizer, self._before(one, shots) + self._params.template, one.subject)
            )
        said = [0] * len(prompts)
        with torch.no_grad():
            for numbers, ids in capture.by_length([one.ids for one in prompts], self._params.batch):
                choices = self._logits(ids).argmax(-1).tolist()
                for number, choice in zip(numbers, choices, strict=True):
                    said[number] = choice
        return [
            Query(sample, prompt, choice, self._right(choice, sample.object))
            for sample, prompt, choice in zip(samples, prompts, said, strict=True)
        ]

    def _right(self, said: int, answer: str) -> bool:
        if self._params.known == "token":
            return said == first_token(self._tokenizer, answer)
        text = self._tokenizer.decode([said]).strip().lower()
        return bool(text) and answer.strip().lower().startswith(text)

    def _operators(self, queries: Sequence[Query]) -> tuple[dict[int, Operator], Metric]:
        """Means over the training subjects; and how far a Jacobian is from a finite difference."""
        differ = Differentiator(self._sites, self._layers, self._params.batch, self._report)
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        errors: list[float] = []
        for number, query in enumerate(queries):
            tangent = differ.of(query.prompt)
            for layer in self._layers:
                J = tangent.jacobians[layer].float()
                b = tangent.answer.float() - J @ tangent.states[layer].float()
                J_sum, b_sum = sums.get(layer, (torch.zeros_like(J), torch.zeros_like(b)))
                sums[layer] = J_sum + J, b_sum + b
            if not number:
                errors = [differ.error(query.prompt, tangent, layer) for layer in self._layers]
            self._report.progress(number + 1, len(queries) + 1)
        n = len(queries)
        worst = Metric(name="jacobian_error", value=max(errors), unit="fraction", n=len(errors), split="train")
        return {layer: Operator(J / n, b / n) for layer, (J, b) in sums.items()}, worst

    def _states(self, heldout: Sequence[Query]) -> tuple[dict[int, Tensor], Tensor]:
        """h by layer [n, d_model], and z [n, d_model]."""
        found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(heldout) for layer in self._layers}
        answers = [torch.empty(0)] * len(heldout)
        with torch.no_grad():
            for numbers, ids in capture.by_length([one.prompt.ids for one in heldout], self._params.batch):
                with capture.captured({**self._places, "z": self._last}) as seen:
                    self._logits(ids)
                for row, number in enumerate(numbers):
                    for layer in self._layers:
                        found[layer][number] = seen[layer][row, heldout[number].prompt.last].float().cpu()
                    answers[number] = seen["z"][row, -1].float().cpu()
        return {layer: torch.stack(some) for layer, some in found.items()}, torch.stack(answers)

    def _faithful(
        self, operators: dict[int, Operator], states: dict[int, Tensor], heldout: Sequence[Query]
    ) -> dict[tuple[int, float], dict[str, Tensor]]:
        """By layer and beta: whether each held-out subject gets the model's own answer from the operator, from b alone,
        and from h itself (the logit lens at the subject)."""
        said = torch.tensor([query.said for query in heldout])
        found = {}
        for layer, operator in operators.items():
            h = states[layer]
            bias = self._decoded(operator.b[None])[0] == said
            identity = self._decoded(h) == said
            for beta in self._params.betas:
                hits = self._decoded(operator.answers(h, beta)) == said
                found[layer, beta] = {"faithfulness": hits, "bias_only": bias, "identity": identity}
        return found

    def _decoded(self, answers: Tensor) -> Tensor:
        """The first choice after each last state: it takes the last block's place in a forward of one token."""
        choices = []
        for some in answers.split(self._params.batch):
            rows = torch.arange(len(some))
            patch = capture.Patch(self._last, rows, torch.zeros_like(rows), some)
            with torch.no_grad(), capture.patched([patch]):
                choices.append(self._logits(torch.zeros(len(some), 1, dtype=torch.long)).argmax(-1).cpu())
        return torch.cat(choices)

    def _causal(
        self,
        operators: dict[int, Operator],
        states: dict[int, Tensor],
        answers: Tensor,
        heldout: Sequence[Query],
        order: random.Random,
    ) -> dict[tuple[int, int], dict[str, Tensor]]:
        """By layer and rank: whether each source is answered as its target, after an edit of its state by the inverse
        of J, by as long a step in a random direction, and by the target's own state."""
        every = [
            (source, target)
            for source in range(len(heldout))
            for target in range(len(heldout))
            if heldout[source].said != heldout[target].said
        ]
        pairs = order.sample(every, min(self._params.pairs, len(every)))
        if not pairs:
            if self._params.pairs:
                self._warnings.append("No two held-out subjects have different answers: nothing is edited.")
            return {}
        sources, targets = (torch.tensor(side) for side in zip(*pairs, strict=True))
        wanted = torch.tensor([heldout[target].said for _, target in pairs])
        wish = answers[targets] - answers[sources]
        generator = torch.Generator().manual_seed(self._report.seed)
        if unread := [layer for layer, operator in operators.items() if not operator.J.any()]:
            self._warnings.append(
                f"J is 0 at {unread}: what these blocks give at the subject's last token has no part in the answer, "
                "and an edit there is none. Earlier `layers` have one."
            )
        found = {}
        for number, (layer, operator) in enumerate(operators.items()):
            h = states[layer]
            U, S, Vh = torch.linalg.svd(operator.J)
            swap = self._edited(layer, heldout, pairs, h[targets]) == wanted
            for rank in sorted({min(one, len(S)) for one in self._params.ranks}):
                step = inverted(wish, U, S, Vh, rank)
                noise = torch.randn(step.shape, generator=generator)
                noise *= step.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
                found[layer, rank] = {
                    "causality": self._edited(layer, heldout, pairs, h[sources] + step) == wanted,
                    "swap": swap,
                    "random": self._edited(layer, heldout, pairs, h[sources] + noise) == wanted,
                }
            self._report.progress(number + 1, len(operators))
            if self._report.stopping:
                self._warnings.append(f"Cancelled: edits at {number + 1} of {len(operators)} layers only.")
                break
        return found

    def _edited(self, layer: int, heldout: Sequence[Query], pairs: Sequence[tuple[int, int]], new: Tensor) -> Tensor:
        """What each source is answered when its state at the subject's last token is another one: [pairs]."""
        prompts = [heldout[source].prompt for source, _ in pairs]
        choices = torch.empty(len(pairs), dtype=torch.long)
        with torch.no_grad():
            for numbers, ids in capture.by_length([one.ids for one in prompts], self._params.batch):
                positions = torch.tensor([prompts[number].last for number in numbers])
                patch = capture.Patch(self._places[layer], torch.arange(len(numbers)), positions, new[numbers])
                with capture.patched([patch]):
                    choices[numbers] = self._logits(ids).argmax(-1).cpu()
        return choices

    def _logits(self, ids: Tensor) -> Tensor:
        self._report.count(forwards=1, tokens=ids.numel())
        return capture.last_logits(self._sites.module, ids.to(self._device))

    def _metrics(
        self,
        faithful: dict[tuple[int, float], dict[str, Tensor]],
        best: tuple[int, float],
        causal: dict[tuple[int, int], dict[str, Tensor]],
    ) -> list[Metric]:
        found = []
        where = f"heldout, layer {best[0]}, beta {best[1]:g}"
        for kind in _KINDS:
            found.append(_share(kind, faithful[best][kind], where))
        found.append(_share("faithfulness_crossed", crossed(faithful), "heldout, layer and beta from the other half"))
        if causal:
            layer, rank = max(causal, key=lambda key: (causal[key]["causality"].sum().item(), -key[0], -key[1]))
            for kind, hits in causal[layer, rank].items():
                name = kind if kind == "causality" else f"causality_{kind}"
                found.append(_share(name, hits, f"heldout, layer {layer}, rank {rank}"))
        return found

    def _kept(self, operators: dict[int, Operator], best: int, beta: float, train: Sequence[Sample]) -> str:
        chosen = operators if self._params.keep == "all" else {best: operators[best]}
        tensors: dict[str, Tensor] = {}
        for layer, operator in chosen.items():
            tensors |= {f"{layer}.J": operator.J.contiguous(), f"{layer}.b": operator.b.contiguous()}
        config = {
            "method": "relation.lre@1",
            "what": "LAYER.J [d_model, d_model] and LAYER.b [d_model]: the last block's output at the last token is "
            "about beta J h + b, with h what block LAYER (-1: the embeddings) gives at the subject's last token",
            "model_type": self._sites.model_type,
            "site": "resid_post",
            "layer": best,
            "beta": beta,
            "template": self._params.template,
            "train": [one.model_dump() for one in train],
        }
        return self._report.artifact("data", tensors, config, name="operator")


def inverted(wish: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> Tensor:
    """The least step in h that J takes to ``wish`` [n, d_model], as far as its first ``rank`` singular values can.

    A direction whose singular value is 0 has no inverse and is left alone: where J is 0 the step is.
    """
    kept = S[:rank]
    return (wish @ U[:, :rank] / torch.where(kept > 0, kept, torch.inf)) @ Vh[:rank]


def crossed(faithful: dict[tuple[int, float], dict[str, Tensor]]) -> Tensor:
    """Hits of each held-out subject at the layer and beta that are best for the half that it is not in: [n]."""
    n = len(next(iter(faithful.values()))["faithfulness"])
    hits = torch.zeros(n, dtype=torch.bool)
    for half in (torch.arange(n) % 2 == 0, torch.arange(n) % 2 == 1):
        best = max(faithful, key=lambda key: (faithful[key]["faithfulness"][half].sum().item(), -key[0]))
        hits[~half] = faithful[best]["faithfulness"][~half]
    return hits


def _share(name: str, hits: Tensor, split: str) -> Metric:
    value, interval = intervals.share(int(hits.sum()), len(hits))
    return Metric(name=name, value=value, unit="fraction", n=len(hits), ci95=interval, split=split)


def _table(faithful: dict[tuple[int, float], dict[str, Tensor]]) -> Table:
    rows = []
    for (layer, beta), found in faithful.items():
        one = _share("", found["faithfulness"], "")
        low, high = one.ci95 or (None, None)
        rest = (float(found[kind].float().mean()) for kind in _KINDS[1:])
        rows.append((layer, beta, one.value, low, high, *rest, one.n))
    columns = ("layer", "beta", "faithfulness", "low", "high", "bias_only", "identity", "n")
    return Table(name="faithfulness", columns=columns, rows=tuple(rows))


def _causes(causal: dict[tuple[int, int], dict[str, Tensor]]) -> Table:
    rows = []
    for (layer, rank), found in causal.items():
        one = _share("", found["causality"], "")
        low, high = one.ci95 or (None, None)
        rest = (float(found[kind].float().mean()) for kind in ("swap", "random"))
        rows.append((layer, rank, one.value, low, high, *rest, one.n))
    columns = ("layer", "rank", "causality", "low", "high", "swap", "random", "n")
    return Table(name="causality", columns=columns, rows=tuple(rows))


def _subjects(tokenizer: Any, screened: Sequence[Query], train: Sequence[Sample], heldout: Sequence[Query]) -> Table:
    held = {query.sample.subject for query in heldout}
    trained = {sample.subject for sample in train}
    rows = []
    for query in screened:
        subject = query.sample.subject
        split = "train" if subject in trained else "heldout" if subject in held else "left out"
        rows.append((subject, query.sample.object, tokenizer.decode([query.said]).strip(), split))
    return Table(name="subjects", columns=("subject", "object", "said", "split"), rows=tuple(rows))


def _layers(wanted: list[int] | None, count: int) -> list[int]:
    if strange := [layer for layer in wanted or [] if not -1 <= layer < count]:
        raise InvalidRequest(
            f"`params.layers` has {strange[0]}; the model's blocks are 0 to {count - 1}, and -1 is the embeddings."
        )
    return list(range(count)) if wanted is None else sorted(set(wanted))
