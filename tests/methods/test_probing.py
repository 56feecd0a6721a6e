"""`probe.train` and `erasure.score`: on synthetic states whose erasure is planted, and on models."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_models import FACTS_MAMBA, facts, of_family
from torch import Tensor

from interlace.methods import find
from interlace.methods.base import ModelFacts
from interlace.methods.notebook import Notebook, run
from interlace.methods.probing.erasure import classes_of, tokens_of, words
from interlace.methods.probing.probes import Batch, Key, Probe, fit, right
from interlace.methods.probing.run import shifted
from interlace.methods.probing.segments import OFFSETS, divided, psi
from interlace.methods.probing.spec import ErasureParams, ProbeParams
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

FACTS_GPT = FACTS_MAMBA.parent / "facts-gpt-mini"
PROBE, ERASURE = find("probe.train"), find("erasure.score")
_TOKENS, _WIDTH, _BACK = 30, 192, 4  # kinds of tokens, width of a state, tokens that a state tells of


class Synthetic:
    """Texts of words of 1 to 3 random tokens. A state of layer 1 tells of the last tokens, the nearest most; layer 9 is
    the same, but for the last tokens of words of several, which forget what is inside their word."""

    def __init__(self, texts: int, length: int, forgets: bool, seed: int) -> None:
        dice = torch.Generator().manual_seed(seed)
        # The codes are the world's, the same for training and test.
        self.codes = torch.randn(_BACK, _TOKENS, _WIDTH, generator=torch.Generator().manual_seed(99)) / _WIDTH**0.5
        self.ids = torch.randint(_TOKENS, (texts, length), generator=dice)
        self.units: list[set[tuple[int, int]]] = []
        early = torch.zeros(texts, length, _WIDTH)
        late = torch.zeros(texts, length, _WIDTH)
        for text in range(texts):
            start, units = 0, set()
            while start < length:
                size = int(torch.randint(1, 4, (1,), generator=dice))
                if size > 1 and start + size <= length:
                    units.add((start, start + size - 1))
                start += size
            self.units.append(units)
            firsts = {last: first for first, last in units}
            for t in range(length):
                for back in range(min(_BACK, t + 1)):
                    part = 0.8**back * self.codes[back, self.ids[text, t - back]]
                    early[text, t] += part
                    if forgets and t in firsts and t - back >= firsts[t]:
                        part = torch.randn(_WIDTH, generator=dice) * part.norm() / _WIDTH**0.5
                    late[text, t] += part
        noise = 0.1 / _WIDTH**0.5
        self.states = {
            1: early + noise * torch.randn(early.shape, generator=dice),
            9: late + noise * torch.randn(late.shape, generator=dice),
        }

    def batch(self, texts: slice) -> Batch:
        states = {layer: state[texts].flatten(0, 1) for layer, state in self.states.items()}
        return Batch(states, {offset: shifted(self.ids[texts], offset).flatten() for offset in OFFSETS})

    def delta(self, probes: Mapping[Key, Probe], text: int) -> Tensor:
        found = torch.full((self.ids.shape[1], 3), float("nan"))
        for column, offset in enumerate(OFFSETS):
            labels = shifted(self.ids[text : text + 1], offset)[0]
            at = (labels >= 0).nonzero()[:, 0]
            with torch.no_grad():
                sure = [probes[layer, offset](self.states[layer][text]).softmax(-1)[at, labels[at]] for layer in (1, 9)]
            found[at, column] = sure[0] - sure[1]
        return found


def _recovered(forgets: bool) -> tuple[float, float]:
    train, test = Synthetic(320, 24, forgets, 1), Synthetic(30, 24, forgets, 2)

    def stream(_: int, start: int) -> Iterator[Batch]:
        for at in range(16 * start, 320, 16):
            yield train.batch(slice(at, at + 16))

    keys: list[Key] = [(layer, offset) for layer in (1, 9) for offset in OFFSETS]
    classes: dict[int | str, int] = dict.fromkeys(OFFSETS, _TOKENS)
    told = {"epochs": 20, "updates": 20, "lr": 0.05, "weight_decay": 1e-3, "rank": None, "seed": 0}
    probes = fit(keys, _WIDTH, classes, stream, **told)  # type: ignore[arg-type]
    both = several = units = 0
    for text in range(30):
        found = {(one.start, one.end) for one in divided(psi(test.delta(probes, text), 6)) if one.end > one.start}
        both += len(found & test.units[text])
        several += len(found)
        units += len(test.units[text])
    return both / max(1, several), both / units


def test_words_whose_tokens_are_forgotten_are_found() -> None:
    precision, recall = _recovered(True)
    assert precision >= 0.75
    assert recall >= 0.75
    precision, recall = _recovered(False)
    assert recall <= 0.2
    assert precision <= 0.25


def _slow_psi(delta: Tensor, p: int, q: int) -> float:
    """Feucht et al.'s code, `scripts/readout.py`: the mean over the terms that there are."""
    total, terms = 0.0, 0
    if not math.isnan(delta[q, 2]):
        total, terms = float(delta[q, 2]), 1
    for t in range(p, q + 1):
        for column, offset in enumerate((-2, -1)):
            if not math.isnan(delta[t, column]):
                total += (-1 if t + offset < p else 1) * float(delta[t, column])
                terms += 1
    return total / terms if terms else 0.0


def _slow_division(delta: Tensor, most: int) -> list[tuple[int, int]]:
    n = len(delta)
    spans = [(p, q) for p in range(n) for q in range(p, min(n, p + most))]
    found: list[tuple[int, int]] = []
    for p, q in sorted(spans, key=lambda span: -_slow_psi(delta, *span)):
        if all(q < first or p > last for first, last in found):
            found.append((p, q))
    return sorted(found)


def test_scores_and_division_are_those_of_the_papers_code() -> None:
    for seed in range(5):
        dice = torch.Generator().manual_seed(seed)
        delta = torch.randn(13, 3, generator=dice, dtype=torch.float64)
        delta[0, :2] = delta[1, 0] = delta[7, 1] = delta[4, 2] = float("nan")
        scores = psi(delta, 5)
        for p in range(13):
            for size in range(1, 6):
                if p + size <= 13:
                    assert float(scores[p, size - 1]) == pytest.approx(_slow_psi(delta, p, p + size - 1), abs=1e-6)
                else:
                    assert scores[p, size - 1] == float("-inf")
        segments = divided(scores)
        assert [(one.start, one.end) for one in segments] == _slow_division(delta, 5)
        assert [at for one in segments for at in range(one.start, one.end + 1)] == list(range(13))


def test_units_and_token_classes() -> None:
    text = "Mary  had lamb"
    offsets = [(0, 2), (2, 4), (4, 6), (6, 9), (9, 12), (12, 14)]
    units = tokens_of(offsets, text, words(text))
    assert units == {(0, 1), (4, 5)}
    assert classes_of(6, units) == ["unit_other", "unit_last", "other", "other", "unit_other", "unit_last"]
    assert shifted(torch.tensor([[5, 6, 7]]), -2).tolist() == [[-1, -1, 5]]
    assert shifted(torch.tensor([[5, 6, 7]]), 1).tolist() == [[6, 7, -1]]
    assert shifted(torch.tensor([[5]]), -2).tolist() == [[-1]]


def _texts(n: int) -> list[str]:
    known = json.loads((FACTS_GPT / "facts.json").read_text())
    return [f"{fact['train'][0]} {fact['object']}." for fact in known[:: len(known) // n][:n]]


def test_probes_of_a_model_and_the_erasure_that_they_tell(tmp_path: Path) -> None:
    model, report = facts(FACTS_GPT), Notebook(tmp_path, bar=False)
    params = {"texts": _texts(60), "layers": [0, 4], "epochs": 6, "batch": 8, "lr": 0.03, "vocabulary": "seen"}
    result = run(PROBE, model, params, report)
    rows = {(row[0], row[1]): row for row in result.table("accuracy").rows}
    assert rows.keys() == {(layer, offset) for layer in (0, 4) for offset in OFFSETS}
    assert rows[0, 0][2] > 0.6 > rows[0, 0][5]
    assert "tokens of the training texts only" in result.warnings[0]
    kept = report.open(result.artifacts[0], "probe")
    assert kept.config["offsets"] == list(OFFSETS)
    assert kept.tensors["4.-1"].shape == (len(kept.config["vocabulary"]), 128)
    assert report.cost["forwards"] >= 6 * 54 / 8
    assert len(result.plot().axes) == 1

    asked = {"probes": result.artifacts[0], "texts": _texts(60)[:8], "layer_start": 0, "layer_end": 4, "shuffles": 2}
    scored = run(ERASURE, model, asked, report)
    delta = report.open(scored.artifacts[0], "data").tensors
    assert len(delta) == 8
    assert delta["0.delta"][0, :2].isnan().all()
    assert not delta["0.delta"][3:].isnan().all()
    assert {one.split for one in scored.metrics} == {"units", "shuffled"}
    assert {row[2] for row in scored.table("accuracy").rows} == {"unit_last", "unit_other", "other"}
    for row in scored.table("segments").rows:
        assert row[3].strip() in asked["texts"][row[0]]
    assert len(scored.plot().axes) == 2
    with pytest.raises(InvalidArtifact, match="has no probe of layer 1"):
        run(ERASURE, model, {**asked, "layer_start": 1}, report)
    with pytest.raises(InvalidArtifact, match="reads a gpt2; this model is a mamba"):
        run(ERASURE, of_family("mamba"), asked, report)


def test_a_mambas_state_tells_the_class_of_a_text_and_shuffled_labels_do_not(tmp_path: Path) -> None:
    known = json.loads((FACTS_MAMBA / "facts.json").read_text())
    some = [fact for fact in known if fact["relation"] in ("job", "sport")][:80]
    target = {"kind": "label", "labels": [fact["relation"] for fact in some]}
    texts = [fact["train"][0] for fact in some]
    params = {"texts": texts, "target": target, "site": "ssm_out", "layers": [2], "epochs": 8, "lr": 0.01}
    result = run(PROBE, of_family("mamba"), {**params, "validation": 0.3}, Notebook(tmp_path, bar=False))
    (row,) = result.table("accuracy").rows
    assert row[2] >= 0.9
    assert row[5] < 0.8
    assert row[6] < 0.8
    assert result.classes == ["job", "sport"]


def test_one_text_at_least_is_left_to_learn_from(tmp_path: Path) -> None:
    params = {"texts": ["The capital", "two plus"], "target": {"kind": "label", "labels": ["x", "y"]}, "epochs": 1}
    result = run(PROBE, of_family("gpt2"), {**params, "validation": 0.95}, Notebook(tmp_path, bar=False))
    assert {row[-1] for row in result.table("accuracy").rows} == {1}


def test_a_text_longer_than_the_model_reads_is_scored_in_windows(tmp_path: Path) -> None:
    report = Notebook(tmp_path, bar=False)
    texts = ["The city of Paris is " * 40, "two plus two"]
    probes = run(PROBE, of_family("gpt2"), {"texts": texts, "layers": [0, 1], "epochs": 1}, report).artifacts[0]
    asked = {"probes": probes, "texts": texts[:1], "layer_start": 0, "layer_end": 1, "shuffles": 1}
    delta = report.open(run(ERASURE, of_family("gpt2"), asked, report).artifacts[0], "data").tensors["0.delta"]
    assert len(delta) == len(of_family("gpt2").tokenizer(texts[0])["input_ids"]) > 128


def test_low_rank_is_flagged_and_is_what_it_says(tmp_path: Path) -> None:
    report = Notebook(tmp_path, bar=False)
    params: dict[str, Any] = {
        "texts": _texts(8),
        "layers": [1],
        "epochs": 1,
        "low_rank": 5,
        "target": {"kind": "token_offset", "offsets": [0]},
    }
    result = run(PROBE, facts(FACTS_GPT), params, report)
    kept = report.open(result.artifacts[0], "probe")
    assert {name: list(one.shape) for name, one in kept.tensors.items()} == {"1.0.A": [5, 128], "1.0.B": [2048, 5]}
    assert "rank 5" in result.warnings[0]


def test_a_probe_learns_what_is_there() -> None:
    states = torch.eye(4).repeat(8, 1)
    batch = Batch({0: states}, {0: torch.arange(4).repeat(8)})
    told = {"epochs": 40, "updates": 1, "lr": 0.1, "weight_decay": 0.0, "rank": None, "seed": 0}
    probes = fit([(0, 0)], 4, {0: 4}, lambda _, start: iter([batch]), **told)  # type: ignore[arg-type]
    assert right(probes[0, 0], batch, (0, 0)) == (32, 32)


def test_wrong_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="List should have at least 2"):
        ProbeParams(texts=["a", "b"], target={"kind": "label", "labels": ["x"]})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="expected at least two"):
        ProbeParams(texts=["a"])
    with pytest.raises(ValidationError, match="must be behind `layer_start`"):
        ErasureParams(probes="p", texts=["a"], layer_start=3, layer_end=3)
    with pytest.raises(ValidationError, match="has one class, 'x'; expected two or more"):
        ProbeParams(texts=["a", "b"], target={"kind": "label", "labels": ["x", "x"]})  # type: ignore[arg-type]
    labelled = {"texts": ["The capital", "", "two"], "target": {"kind": "label", "labels": ["x", "y", "x"]}}
    with pytest.raises(InvalidRequest, match=r"`params.texts.1` has no token"):
        run(PROBE, of_family("gpt2"), labelled, Notebook(tmp_path, bar=False))
    with pytest.raises(InvalidRequest, match="has no site 'ssm_out'"):
        run(PROBE, of_family("gpt2"), {"texts": ["a b", "c d"], "site": "ssm_out"}, Notebook(tmp_path, bar=False))


def test_what_it_would_cost_is_said() -> None:
    known = ModelFacts(n_params=10_000, n_layers=3, hidden_size=32, vocab_size=50)
    cost = PROBE.estimate(ProbeParams(texts=["a b c d e f"] * 8, epochs=2), known)
    assert cost.forwards == 6
    assert ERASURE.estimate(ErasureParams(probes="p", texts=["a b", "c d"]), known).forwards == 2
