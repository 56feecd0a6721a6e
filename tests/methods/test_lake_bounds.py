"""Texts longer than the model reads, and times below nothing: what the lake's methods make of them."""

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch

from interlace.methods import find
from interlace.methods.base import ModelFacts
from interlace.methods.lake.tree import Geometry, recover
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.edits import pack
from interlace.protocol.errors import InvalidRequest

LONG = "two plus two is four " * 60


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    return Notebook(tmp_path, bar=False)


@pytest.fixture
def model() -> Any:
    return small_models.of_family("gpt2")


def test_a_text_longer_than_the_model_reads_is_named(notebook: Notebook, model: Any) -> None:
    edit = notebook.artifact("edit", *pack([small_models.an_edit(model, "mlp_out")], model))
    asked = {"outputs": [{"text": "four"}, {"prompt": "two", "text": LONG}], "candidates": [edit]}
    bound = model._module.config.n_positions
    with pytest.raises(InvalidRequest, match=rf"`params.outputs.1`, with its prompt, has .* reads {bound} at most"):
        run(find("lake.attribute"), model, asked, notebook)


def test_a_probe_is_cut_to_what_the_model_reads(notebook: Notebook, model: Any) -> None:
    edit = notebook.artifact("edit", *pack([small_models.an_edit(model, "mlp_out")], model))
    whole = run(find("lake.compare"), model, {"other": edit, "probes": [LONG], "context": 2048}, notebook)
    bound = model._module.config.n_positions
    cut = run(find("lake.compare"), model, {"other": edit, "probes": [LONG], "context": bound}, notebook)
    assert whole == cut


def test_the_hosted_model_is_older_than_any_time() -> None:
    """Also than times before 1970, and than days counted back from now."""
    places = torch.tensor([0.0, 1.0, 2.0])  # on one line: the model, its child, and the child's child
    squared = (places[:, None] - places[None, :]).square() + (1 - torch.eye(3)) * 0.5
    same = torch.zeros(3, 3)
    facts = {"norms": torch.full((3,), 100.0), "kurtosis": torch.zeros(3), "distinct": torch.ones(3)}
    found = Geometry(squared=squared.double(), rank=same, spectral=same + 1, z=same + 20, **facts)
    heritage = recover(found, [None, -5.0, -2.0], 0)
    assert [(edge.parent, edge.child) for edge in heritage.edges] == [(0, 1), (1, 2)]


def test_the_estimate_of_a_comparison_has_room_for_what_is_kept() -> None:
    """Of every probe, what both models say of each token: log-probabilities of the whole vocabulary, of 8 bytes."""
    spec = find("lake.compare")
    facts = ModelFacts(n_params=1, n_layers=12, hidden_size=768, vocab_size=50_257)
    params = spec.params.model_validate({"other": "artifact:a", "probes": ["x" * 256] * 64})
    assert spec.estimate(params, facts).peak_bytes > 2 * 64 * 128 * facts.vocab_size * 8


class Stopped(Notebook):
    """A notebook that is cancelled once so many forwards are counted."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder, bar=False)
        self.left = after

    @property
    def stopping(self) -> bool:
        return self.left <= 0

    def count(self, *, forwards: int = 0, backwards: int = 0, tokens: int = 0) -> None:
        super().count(forwards=forwards, backwards=backwards, tokens=tokens)
        self.left -= forwards


@pytest.mark.parametrize(("after", "candidates", "outputs"), [(2, 1, 2), (3, 1, 3), (4, 1, 3), (7, 2, 3), (9, 3, 3)])
def test_a_cancelled_attribution_compares_what_was_read(
    after: int, candidates: int, outputs: int, tmp_path: Path, model: Any
) -> None:
    """Cancelled in the first of three candidates, behind it, in the second, in the third, and behind all."""
    report = Stopped(tmp_path, after)
    edits = [
        report.artifact("edit", *pack([small_models.an_edit(model, "mlp_out", seed=seed)], model)) for seed in (1, 2)
    ]
    asked = {"outputs": [{"text": text} for text in ("two plus two", "is four", "plus two is")], "candidates": edits}
    found = run(find("lake.attribute"), model, asked, report)
    assert report.left == 0
    rows = found.table("candidates").rows
    assert {row[0] for row in rows} == set(["model", *edits][:candidates])
    assert {metric.n for metric in found.metrics} == {outputs}
    assert sum(row[4] for row in rows) == outputs
    assert ("margin" in {metric.name for metric in found.metrics}) == (candidates > 1)
    said = f"Cancelled after {candidates} of 3 candidates, on {outputs} of 3 outputs."
    assert (said in found.warnings) == (candidates < 3)
    whole = run(find("lake.attribute"), model, asked, Notebook(tmp_path, bar=False))
    if outputs == 3:
        nats = {row[0]: row[1] for row in whole.table("candidates").rows}
        assert {row[0]: row[1] for row in rows} == {row[0]: nats[row[0]] for row in rows}
