"""Which spans a model takes as one: what probes tell of their tokens early, and no more a few layers on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.probing.probes import Probes
from interlace.methods.probing.segments import OFFSETS, Segment, divided, psi
from interlace.methods.probing.spec import ErasureParams, ErasureResult
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.prompts import longest
from interlace.methods.shared.sites import Place, Sites, evaluating
from interlace.protocol.errors import InvalidRequest

_CLASSES = ("unit_last", "unit_other", "other")
_MOST_WORDS = 2000  # of the vocabulary that is told


@dataclass
class _Count:
    """Hits, of how many."""

    hits: int = 0
    n: int = 0

    def add(self, hits: int, n: int) -> None:
        self.hits += hits
        self.n += n


@dataclass
class _Found:
    """What the texts so far have given."""

    segments: list[tuple[Any, ...]] = field(default_factory=list)
    delta: dict[str, Tensor] = field(default_factory=dict)
    #: By layer, offset and token class.
    accuracy: dict[tuple[int, int, str], _Count] = field(default_factory=dict)
    precision: _Count = field(default_factory=_Count)
    recall: _Count = field(default_factory=_Count)
    shuffled_precision: _Count = field(default_factory=_Count)
    shuffled_recall: _Count = field(default_factory=_Count)


def run(model: Any, params: ErasureParams, report: Report) -> ErasureResult:
    """See `ErasureParams`. Raises InvalidRequest, and InvalidArtifact for probes of another model."""
    with evaluating(model), torch.no_grad():
        return _Scorer(Sites.of(model), model.tokenizer, params, report).run()


class _Scorer:
    def __init__(self, sites: Sites, tokenizer: Any, params: ErasureParams, report: Report) -> None:
        self._params = params
        self._report = report
        self._module = sites.module
        self._tokenizer = tokenizer
        self._device = next(sites.module.parameters()).device
        size = int(sites.module.get_input_embeddings().weight.shape[0])
        self._window = min(params.window, longest(sites.module))
        self._probes = Probes.of(report.open(params.probes, "probe"), sites.model_type, size)
        self._layers = (params.layer_start, params.layer_end)
        self._places: dict[int, Place] = {layer: sites.place(self._probes.site, layer) for layer in self._layers}
        self._generator = torch.Generator().manual_seed(report.seed)
        self._found = _Found()
        self._warnings: list[str] = []

    def run(self) -> ErasureResult:
        texts = self._report.texts(self._params.texts)
        if self._params.spans is not None and len(self._params.spans) != len(texts):
            raise InvalidRequest(f"`params.spans` has {len(self._params.spans)} lists for {len(texts)} texts.")
        for number, text in enumerate(texts):
            if self._report.stopping:
                self._warnings.append(f"Cancelled after {number} of {len(texts)} texts.")
                break
            self._text(number, text, words(text) if self._params.spans is None else self._params.spans[number])
            self._report.progress(number + 1, len(texts))
        return self._result()

    def _text(self, number: int, text: str, spans: Sequence[tuple[int, int]]) -> None:
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        ids, offsets = torch.tensor(encoded["input_ids"]), encoded["offset_mapping"]
        units = tokens_of(offsets, text, spans)
        pieces = []
        for start in range(0, len(ids), self._window):
            window = ids[start : start + self._window]
            delta, told = self._delta(window)
            pieces.append(delta)
            inside = {
                (first - start, last - start) for first, last in units if start <= first and last < start + len(window)
            }
            self._judge(delta, told, inside)
            for segment in divided(psi(delta, self._params.max_span)):
                if segment.end > segment.start:
                    first, last = start + segment.start, start + segment.end
                    string = text[offsets[first][0] : offsets[last][1]]
                    unit = (segment.start, segment.end) in inside
                    self._found.segments.append((number, first, last, string, segment.psi, unit))
        if pieces:
            self._found.delta[f"{number}.delta"] = torch.cat(pieces).float().contiguous()

    def _delta(self, ids: Tensor) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
        """What is forgotten [tokens, OFFSETS], and what each probe says, [tokens]: 1 right, 0 wrong, -1 nothing."""
        self._report.count(forwards=1, tokens=ids.numel())
        with capture.captured(self._places) as states:
            capture.last_logits(self._module, ids[None].to(self._device))
        delta = torch.full((len(ids), len(OFFSETS)), float("nan"), dtype=torch.float64)
        told = {}
        for column, offset in enumerate(OFFSETS):
            at = torch.arange(-offset, len(ids))
            wanted = self._probes.rows[ids[at + offset]]
            at, wanted = at[wanted >= 0], wanted[wanted >= 0]
            sure = []
            for layer in self._layers:
                log_probs = self._probes.log_probs(layer, offset, states[layer][0])[at]
                sure.append(log_probs.gather(1, wanted[:, None])[:, 0].double().exp())
                told[layer, offset] = torch.full((len(ids),), -1)
                told[layer, offset][at] = (log_probs.argmax(-1) == wanted).long()
            delta[at, column] = sure[0] - sure[1]
        return delta, told

    def _judge(self, delta: Tensor, told: dict[tuple[int, int], Tensor], units: set[tuple[int, int]]) -> None:
        """Add to what is known of probes and segments, and of segments when the tokens' scores change places."""
        classes = classes_of(len(delta), units)
        for (layer, offset), right in told.items():
            for name in _CLASSES:
                some = right[[at for at, one in enumerate(classes) if one == name]]
                count = self._found.accuracy.setdefault((layer, offset, name), _Count())
                count.add(int((some == 1).sum()), int((some >= 0).sum()))
        _compare(divided(psi(delta, self._params.max_span)), units, self._found.precision, self._found.recall)
        for _ in range(self._params.shuffles):
            other = delta[torch.randperm(len(delta), generator=self._generator)]
            segments = divided(psi(other, self._params.max_span))
            _compare(segments, units, self._found.shuffled_precision, self._found.shuffled_recall)

    def _result(self) -> ErasureResult:
        found = self._found
        metrics = []
        for name, split in (("precision", "units"), ("recall", "units")):
            for count, which in ((getattr(found, name), split), (getattr(found, f"shuffled_{name}"), "shuffled")):
                value, interval = intervals.share(count.hits, count.n)
                metrics.append(Metric(name=name, value=value, unit="fraction", n=count.n, ci95=interval, split=which))
        rows = []
        for (layer, offset, name), count in sorted(found.accuracy.items()):
            value, interval = intervals.share(count.hits, count.n)
            rows.append((layer, offset, name, value, *(interval or (None, None)), count.n))
        columns = ("layer", "offset", "token_class", "accuracy", "low", "high", "n")
        segments = Table(
            name="segments",
            columns=("text", "start", "end", "string", "psi", "unit"),
            rows=tuple(found.segments),
        )
        config = {
            "method": "erasure.score@1",
            "what": "NUMBER.delta [tokens, offsets -2, -1, 0]: a text's, P at layer_start less P at layer_end",
            "layer_start": self._params.layer_start,
            "layer_end": self._params.layer_end,
        }
        return ErasureResult(
            metrics=tuple(metrics),
            tables=(segments, vocabulary(found.segments), Table(name="accuracy", columns=columns, rows=tuple(rows))),
            artifacts=(self._report.artifact("data", found.delta, config, name="delta"),),
            warnings=tuple(self._warnings),
        )


def words(text: str) -> list[tuple[int, int]]:
    """Where the words between white space are."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def tokens_of(offsets: Sequence[tuple[int, int]], text: str, spans: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Spans of characters as spans of tokens, both ends in it: those of several tokens. White space is no part."""
    found = set()
    for start, stop in spans:
        inside = [
            number
            for number, (begin, end) in enumerate(offsets)
            if begin < stop and end > start and text[begin:end].strip()
        ]
        if len(inside) > 1:
            found.add((inside[0], inside[-1]))
    return found


def classes_of(length: int, units: set[tuple[int, int]]) -> list[str]:
    """Of each token: the last of a unit, another one of it, or of none."""
    classes = ["other"] * length
    for first, last in units:
        classes[first:last] = ["unit_other"] * (last - first)
    for _, last in units:
        classes[last] = "unit_last"
    return classes


def vocabulary(segments: Sequence[tuple[Any, ...]]) -> Table:
    """Each string once, with its mean score, the best first."""
    scores: dict[str, list[float]] = {}
    for _, _, _, string, score, _ in segments:
        scores.setdefault(string.strip(), []).append(score)
    rows = sorted(
        ((string, sum(some) / len(some), len(some)) for string, some in scores.items()), key=lambda row: -row[1]
    )
    return Table(name="vocabulary", columns=("string", "psi", "n"), rows=tuple(rows[:_MOST_WORDS]))


def _compare(segments: Sequence[Segment], units: set[tuple[int, int]], precision: _Count, recall: _Count) -> None:
    several = {(one.start, one.end) for one in segments if one.end > one.start}
    both = len(several & units)
    precision.add(both, len(several))
    recall.add(both, len(units))
