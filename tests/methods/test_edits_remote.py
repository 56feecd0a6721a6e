"""Edits of a request: the same values as with them here, for that request alone."""

from typing import Any

import pytest
import tiny
import torch
from nnsight import TransformersModel
from small_models import an_edit

import interlace
from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import edits as _edits

_PROMPT = "The Eiffel Tower is in"


@pytest.fixture
def edit(local: Any) -> _edits.Edit:
    return an_edit(local, "mlp_out", rank=2)


@pytest.fixture
def kept(client: interlace.Client, local: Any, edit: _edits.Edit) -> Any:
    tensors, config = _edits.pack([edit], local)
    return client.artifacts.keep("edit", tensors, config, model=tiny.GPT2)


def _traced(model: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with model.trace(_PROMPT, **how):
        inner = model.transformer.h[1].mlp.c_proj.output.save()
        logits = model.lm_head.output.save()
    return inner, logits


def test_a_trace_with_edits_is_the_one_here_and_the_next_has_none(
    client: interlace.Client, local: Any, edit: _edits.Edit, kept: Any
) -> None:
    model = TransformersModel(tiny.GPT2, task="text-generation")
    bare = _traced(local)
    with _edits.added(local, [edit]):
        here = _traced(local)
    there = _traced(model, backend=client.on(model, edits=[kept]))
    for one, two in zip(here, there, strict=True):
        torch.testing.assert_close(one, two)
    assert (here[0] - bare[0]).abs().max() > 1e-2
    torch.testing.assert_close(_traced(model, backend=client.on(model))[1], bare[1])


def test_a_method_with_edits_is_the_one_here(
    client: interlace.Client, local: Any, edit: _edits.Edit, kept: Any, tmp_path: Any
) -> None:
    params = {"prompts": [_PROMPT]}
    with _edits.added(local, [edit]):
        here = run(find("lens.logit"), local, params, Notebook(tmp_path, bar=False))
    assert client.run("lens.logit", model=tiny.GPT2, params=params, edits=[kept], follow=False) == here
    bare = client.run("lens.logit", model=tiny.GPT2, params=params, follow=False)
    assert bare != here


def test_an_edit_that_does_not_fit_ends_the_job_with_the_reason(client: interlace.Client, local: Any) -> None:
    wrong = _edits.Edit(torch.ones(1, 5), torch.ones(5, 1), "mlp_out", 1)
    tensors, config = _edits.pack([wrong], local)
    artifact = client.artifacts.keep("edit", tensors, config, model=tiny.GPT2)
    model = TransformersModel(tiny.GPT2, task="text-generation")
    with pytest.raises(Exception, match="reads 256 and gives 64"):
        _traced(model, backend=client.on(model, edits=[artifact]))
