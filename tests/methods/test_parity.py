"""Promise: a method gives the same values here and as a job, and makes the same artifacts."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import torch
from method_cases import CASES, Case

import interlace
from interlace.methods import catalogue, find
from interlace.methods.base import Opened
from interlace.methods.notebook import Notebook, run


def test_every_method_has_a_case(packages: Path) -> None:
    assert CASES.keys() == catalogue().keys()


def assert_same(here: Any, there: Any, where: str = "") -> None:
    """Equal, but for what names artifacts."""
    if isinstance(here, dict) and isinstance(there, dict):
        assert here.keys() == there.keys(), where
        for name, value in here.items():
            assert_same(value, there[name], f"{where}.{name}")
    elif isinstance(here, list | tuple) and isinstance(there, list | tuple):
        assert len(here) == len(there), where
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            assert_same(one, other, f"{where}.{number}")
    elif isinstance(there, str) and there.startswith("artifact:"):
        assert isinstance(here, str), where
        assert Path(here).is_dir(), where
    else:
        assert here == there or (here != here and there != there), where


def assert_same_artifact(here: Opened, there: Opened) -> None:
    assert here.kind == there.kind
    assert here.tensors.keys() == there.tensors.keys()
    for name, tensor in here.tensors.items():
        torch.testing.assert_close(there.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert_same(dict(here.config), dict(there.config), here.kind)


def _within(params: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
    """The parameters with names of artifacts where their dots lead."""
    whole = copy.deepcopy(params)
    for place, name in named.items():
        *outer, last = place.split(".")
        inner = whole
        for one in outer:
            inner = inner[one]
        inner[last] = name
    return whole


_CASES = [
    pytest.param(ref, case, id=f"{ref}-{number}") for ref, cases in CASES.items() for number, case in enumerate(cases)
]


@pytest.mark.parametrize(("ref", "case"), _CASES)
def test_a_job_gives_what_a_notebook_gives(
    ref: str, case: Case, client: interlace.Client, here: Callable[[str], Any], tmp_path: Path
) -> None:
    notebook = Notebook(tmp_path, seed=case.seed, bar=False)
    made = {name: build() for name, build in case.inputs.items()}
    mine = {name: notebook.artifact(*artifact) for name, artifact in made.items()}
    theirs = {name: client.artifacts.keep(*artifact) for name, artifact in made.items()}
    ours = run(find(ref), here(case.model), _within(case.params, mine), notebook)
    flat = {name: one for name, one in theirs.items() if "." not in name}
    params = _within(case.params, {name: one.ref for name, one in theirs.items() if name not in flat})
    there = client.run(ref, model=case.model, params=params, inputs=flat, seed=case.seed, follow=False)
    assert type(there) is type(ours)
    assert_same(ours.model_dump(), there.model_dump())
    for one, other in zip(ours.artifacts, there.artifacts, strict=True):
        assert_same_artifact(notebook.open(one), client.artifacts.open(other))
    if case.model == tiny_diffusion.SHAPES:  # what it costs is known before, by what the artifacts hold
        told = client.estimate(ref, model=case.model, params=params, inputs=flat)
        for name, counted in notebook.cost.items():
            assert counted <= getattr(told, name) <= 2 * counted, name
    envelope = there.envelope
    assert envelope is not None
    assert envelope.cost.model_dump(include={"forwards", "backwards", "tokens"}) == notebook.cost
    assert envelope.cost.forwards > 0
    assert envelope.cost.seconds
    assert envelope.provenance.method == ref
    assert (envelope.provenance.seed, envelope.provenance.dtype, envelope.provenance.device) == (
        case.seed,
        "float32",
        "cpu",
    )
    assert envelope.provenance.libraries["torch"] == torch.__version__
    assert set(envelope.provenance.params) == set(find(ref).params.model_fields)
    assert [one.ref for one in envelope.artifacts] == list(there.artifacts)
