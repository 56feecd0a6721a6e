"""Causal tracing, many patches a forward: each row of a batch restores its own state at its own token and layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Metric, Report, Table
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.capture import Patch
from interlace.methods.shared.prompts import CLASSES, Prompt, check_lengths, first_token
from interlace.methods.shared.sites import Place, Sites, evaluating
from interlace.methods.tracing.spec import TracedPrompt, TracingParams, TracingResult
from interlace.protocol.errors import InvalidRequest

#: (what is restored, what is severed meanwhile or "").
Series = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One prompt, run clean and corrupted."""

    prompt: Prompt
    answer: int
    #: The answer to the alternative subject; -1 where there is none.
    other: int
    #: [1, tokens]: what the corrupted run reads.
    corrupt_ids: Tensor
    #: [samples, subject tokens, width]: what is added to the subject's embeddings; None where another subject corrupts.
    noise: Tensor | None
    clean: float
    #: Of each sample.
    corrupt: tuple[float, ...]
    #: By state and layer: [tokens, width].
    clean_states: dict[tuple[str, int], Tensor]
    #: By severed state and layer: [samples, tokens, width].
    corrupt_states: dict[tuple[str, int], Tensor]

    @property
    def gap(self) -> float:
        return self.clean - sum(self.corrupt) / len(self.corrupt)


def run(model: Any, params: TracingParams, report: Report) -> TracingResult:
    """See `TracingParams`. Raises InvalidRequest for a state that the model has not, and where no prompt is left."""
    with evaluating(model) as module, torch.no_grad():
        tracer = _Tracer(module, model.tokenizer, params, report)
        return tracer.run()


class _Tracer:
    def __init__(self, module: nn.Module, tokenizer: Any, params: TracingParams, report: Report) -> None:
        self._module = module
        self._tokenizer = tokenizer
        self._params = params
        self._report = report
        self._sites = Sites.of(module)
        self._device = next(module.parameters()).device
        self._forwards = 0
        self._series: list[Series] = [(state, "") for state in params.states]
        self._series += [("resid_post", state) for state in params.sever]
        self._places: dict[tuple[str, int], Place] = {
            (state, layer): self._sites.place(state, layer)
            for state in {"resid_post", *params.states, *params.sever}
            for layer in range(self._sites.n_layers)
        }
        self._warnings: list[str] = []

    def run(self) -> TracingResult:
        prompts = [
            Prompt.of(self._tokenizer, self._params.prefix + one.text, one.subject) for one in self._params.prompts
        ]
        check_lengths(self._module, prompts)
        first = [self._forward(torch.tensor([one.ids]), []).argmax(-1).item() for one in prompts]
        sigma = self._sigma(prompts)
        rows: list[tuple[Any, ...]] = []
        grids: list[tuple[Case, dict[Series, Tensor]]] = []
        for number, asked in enumerate(self._params.prompts):
            if self._report.stopping:
                self._warnings.append(f"Cancelled after {number} of {len(prompts)} prompts.")
                break
            case, why = self._case(number, prompts, [int(one) for one in first], sigma)
            if case is not None and case.gap < self._params.least_effect:
                why = f"the corruption lowers the score by {case.gap:.3f} only"
            if case is not None and not why:
                grids.append((case, {series: self._grid(case, series) for series in self._series}))
            scores = (case.clean, case.clean - case.gap) if case is not None else (None, None)
            said = asked.answer if asked.answer is not None else self._tokenizer.decode([first[number]]).strip()
            rows.append((asked.text, asked.subject, said, *scores, not why, why))
            self._report.progress(number + 1, len(prompts), kept=float(len(grids)))
        if not grids:
            reasons = "; ".join(sorted({str(row[-1]) for row in rows if row[-1]}))
            raise InvalidRequest(f"No prompt is left to trace: {reasons or 'cancelled'}.")
        return self._result(grids, rows, prompts, [int(one) for one in first])

    def _case(
        self, number: int, prompts: Sequence[Prompt], first: Sequence[int], sigma: float
    ) -> tuple[Case | None, str]:
        """A prompt as it is traced, or why it is not."""
        asked, prompt = self._params.prompts[number], prompts[number]
        answer = first[number] if asked.answer is None else first_token(self._tokenizer, asked.answer)
        if self._params.filter_known and first[number] != answer:
            return None, "the answer is not the model's first choice"
        ids, noise, other = torch.tensor([prompt.ids]), None, -1
        generator = torch.Generator().manual_seed(self._report.seed * 1_000_003 + number)
        if self._params.corruption == "noise":
            width = self._sites.place("embed").module.weight.shape[1]
            shape = (self._params.samples, prompt.last + 1 - prompt.first, width)
            noise = torch.randn(shape, generator=generator) * sigma
        else:
            alternatives = self._alternatives(number, prompts, first)
            if not alternatives:
                return None, "no other subject of as many tokens has the same words around it and another answer"
            chosen = alternatives[int(torch.randint(len(alternatives), (1,), generator=generator))]
            ids = torch.tensor([chosen.ids])
            other = int(self._forward(ids, []).argmax(-1).item())
            if other == answer:
                return None, "the alternative subject has the same answer"
        return self._both_runs(Case(prompt, answer, other, ids, noise, 0.0, (), {}, {})), ""

    def _alternatives(self, number: int, prompts: Sequence[Prompt], first: Sequence[int]) -> list[Prompt]:
        asked, prompt = self._params.prompts[number], prompts[number]
        if asked.alternative is not None:
            subjects = [asked.alternative]
        else:
            subjects = [
                one.subject
                for one, choice in zip(self._params.prompts, first, strict=True)
                if _around(one) == _around(asked) and one.subject != asked.subject and choice != first[number]
            ]
        found = []
        for subject in dict.fromkeys(subjects):
            before, _, after = (self._params.prefix + asked.text).rpartition(asked.subject)
            one = Prompt.of(self._tokenizer, before + subject + after, subject, len(before))
            if (len(one.ids), one.first, one.last) == (len(prompt.ids), prompt.first, prompt.last):
                found.append(one)
        return found

    def _both_runs(self, case: Case) -> Case:
        """With its scores, and the states that are restored and severed."""
        wanted = {key: place for key, place in self._places.items() if key[0] in {"resid_post", *self._params.states}}
        with capture.captured(wanted) as states:
            clean = self._score(self._forward(torch.tensor([case.prompt.ids]), []), case)
        clean_states = {key: state[0] for key, state in states.items()}
        severed = {key: place for key, place in self._places.items() if key[0] in self._params.sever}
        samples = list(range(1 if case.noise is None else self._params.samples))
        scores, pieces = [], []
        for start in range(0, len(samples), self._params.batch):
            some = samples[start : start + self._params.batch]
            with capture.altered(self._noised(case, some)), capture.captured(severed) as states:
                scores += self._score(self._forward(case.corrupt_ids.expand(len(some), -1), []), case).tolist()
            pieces.append(dict(states))
        corrupt_states = {key: torch.cat([piece[key] for piece in pieces]) for key in severed}
        return Case(
            case.prompt,
            case.answer,
            case.other,
            case.corrupt_ids,
            case.noise,
            float(clean[0]),
            tuple(scores),
            clean_states,
            corrupt_states,
        )

    def _grid(self, case: Case, series: Series) -> Tensor:
        """The score that comes back, [tokens, layers], the mean over samples; NaN at tokens that were not asked for."""
        state, severed = series
        names = ["subject_last"] if severed else self._params.positions
        positions = sorted({position for name in names for position in case.prompt.positions(name)})
        items = list(product(range(len(case.corrupt)), positions, range(self._sites.n_layers)))
        back = torch.zeros(len(case.prompt.ids), self._sites.n_layers, dtype=torch.float64)
        for start in range(0, len(items), self._params.batch):
            some = items[start : start + self._params.batch]
            samples = [sample for sample, _, _ in some]
            changes = self._noised(case, samples) + self._restored(case, state, some)
            if severed:
                changes += self._severed(case, severed, some)
            scores = self._score(self._forward(case.corrupt_ids.expand(len(some), -1), changes), case)
            for (sample, position, layer), score in zip(some, scores.tolist(), strict=True):
                back[position, layer] += (score - case.corrupt[sample]) / len(case.corrupt)
        left_out = [position for position in range(len(back)) if position not in positions]
        back[left_out] = float("nan")
        return back / case.gap if self._params.normalised else back

    def _noised(self, case: Case, samples: Sequence[int]) -> list[tuple[Place, capture.Change]]:
        noise = case.noise
        if noise is None:
            return []
        added = noise[list(samples)]

        def corrupt(state: Tensor) -> Tensor:
            changed = state.clone()
            changed[:, case.prompt.first : case.prompt.last + 1] += added.to(state.device, state.dtype)
            return changed

        return [(self._sites.place("embed"), corrupt)]

    def _restored(
        self, case: Case, state: str, items: Sequence[tuple[int, int, int]]
    ) -> list[tuple[Place, capture.Change]]:
        window = 1 if state == "resid_post" else self._params.window
        changes: list[tuple[Place, capture.Change]] = []
        for layer in range(self._sites.n_layers):
            rows = [row for row, item in enumerate(items) if 0 <= layer - item[2] + window // 2 < window]
            if rows:
                positions = torch.tensor([items[row][1] for row in rows])
                place = self._places[state, layer]
                values = case.clean_states[state, layer][positions]
                changes.append((place, Patch(place, torch.tensor(rows), positions, values)))
        return changes

    def _severed(
        self, case: Case, state: str, items: Sequence[tuple[int, int, int]]
    ) -> list[tuple[Place, capture.Change]]:
        """The corrupted values at each row's token, in all layers."""
        samples = torch.tensor([item[0] for item in items])
        positions = torch.tensor([item[1] for item in items])
        rows = torch.arange(len(items))
        changes: list[tuple[Place, capture.Change]] = []
        for layer in range(self._sites.n_layers):
            place = self._places[state, layer]
            values = case.corrupt_states[state, layer][samples, positions]
            changes.append((place, Patch(place, rows, positions, values)))
        return changes

    def _forward(self, ids: Tensor, changes: Sequence[tuple[Place, capture.Change]]) -> Tensor:
        """Logits of the last token, [rows, vocabulary]."""
        self._forwards += 1
        self._report.count(forwards=1, tokens=ids.numel())
        with capture.altered(changes):
            return capture.last_logits(self._module, ids.to(self._device))

    def _score(self, logits: Tensor, case: Case) -> Tensor:
        """[rows]"""
        wide = logits.double()
        if self._params.score == "logit_diff":
            return wide[:, case.answer] - wide[:, case.other]
        logprobs = wide.log_softmax(-1)[:, case.answer]
        return logprobs if self._params.score == "logprob" else logprobs.exp()

    def _sigma(self, prompts: Sequence[Prompt]) -> float:
        """`k_sigma` times the standard deviation of the embeddings of all subjects' tokens."""
        ids = sorted({token for one in prompts for token in one.ids[one.first : one.last + 1]})
        embed = self._sites.place("embed").module  # Gemma's gives more than its weight: 48 times of 2B's
        return float(self._params.k_sigma * embed(torch.tensor(ids, device=self._device)).float().std())

    def _result(
        self,
        grids: Sequence[tuple[Case, dict[Series, Tensor]]],
        rows: Sequence[tuple[Any, ...]],
        prompts: Sequence[Prompt],
        first: Sequence[int],
    ) -> TracingResult:
        unit = "fraction" if self._params.normalised else self._params.score
        table, metrics = _averaged(grids, self._series, self._sites.n_layers, unit)
        middle, interval = intervals.mean([case.gap for case, _ in grids])
        metrics.append(Metric(name="total_effect", value=middle, unit=self._params.score, n=len(grids), ci95=interval))
        answers = [one.answer for one in self._params.prompts]
        told = [
            choice == first_token(self._tokenizer, answer)
            for choice, answer in zip(first, answers, strict=True)
            if answer is not None
        ]
        if told:
            value, interval = intervals.share(sum(told), len(told))
            metrics.append(Metric(name="known", value=value, unit="fraction", n=len(told), ci95=interval))
        left = len(rows) - len(grids)
        if left:
            self._warnings.append(f"{left} of {len(rows)} prompts are left out; the table `prompts` says why.")
        columns = ("text", "subject", "answer", "clean", "corrupt", "kept", "why_not")
        tensors = {
            f"{number}.{state}{'-' if cut else ''}{cut}": grid.float().contiguous()
            for number, (_, series) in enumerate(grids)
            for (state, cut), grid in series.items()
        }
        config = {
            "method": "trace.causal@1",
            "what": "NUMBER.STATE[-SEVERED] is [tokens, layers] of one prompt",
            "unit": unit,
            "tokens": [[self._tokenizer.decode([one]) for one in case.prompt.ids] for case, _ in grids],
            "classes": [case.prompt.classes() for case, _ in grids],
        }
        return TracingResult(
            metrics=tuple(metrics),
            tables=(table, Table(name="prompts", columns=columns, rows=tuple(rows))),
            artifacts=(self._report.artifact("data", tensors, config, name="effects"),),
            warnings=tuple(self._warnings),
            forwards=self._forwards,
        )


def _averaged(
    grids: Sequence[tuple[Case, dict[Series, Tensor]]], every: Sequence[Series], n_layers: int, unit: str
) -> tuple[Table, list[Metric]]:
    """Mean over prompts of the mean over a class's tokens, by layer; and each series' highest."""
    rows: list[tuple[Any, ...]] = []
    metrics = []
    for series in every:
        found: list[tuple[Any, ...]] = []
        for name in CLASSES:
            means = []
            for case, effects in grids:
                members = [at for at, one in enumerate(case.prompt.classes()) if one == name]
                some = effects[series][members]
                some = some[~some.isnan().any(-1)]
                if len(some):
                    means.append(some.mean(0))
            for layer in range(n_layers if means else 0):
                middle, interval = intervals.mean([float(one[layer]) for one in means])
                low, high = interval or (None, None)
                found.append((*series, name, layer, middle, low, high, len(means)))
        rows += found
        before_last = [row for row in found if row[2] != "last"]
        highest = max(before_last or found, key=lambda row: row[4])
        state, severed, name, layer, value, low, high, n = highest
        split = f"{name}, layer {layer}" + (f", {severed} severed" if severed else "")
        interval = None if low is None else (low, high)
        metrics.append(Metric(name=f"peak.{state}", value=value, unit=unit, n=n, ci95=interval, split=split))
    columns = ("state", "severed", "token_class", "layer", "aie", "low", "high", "n")
    return Table(name="aie", columns=columns, rows=tuple(rows)), metrics


def _around(asked: TracedPrompt) -> tuple[str, str]:
    before, _, after = asked.text.rpartition(asked.subject)
    return before, after
