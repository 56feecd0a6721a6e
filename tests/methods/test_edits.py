"""Edits without touching weights: the function of the edited weights in all that nnsight does, and gone after."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from small_models import PROMPT, an_edit, logits, of_family

from interlace.methods.base import Opened
from interlace.methods.shared import edits as _edits
from interlace.methods.shared.edits import Edit, added, attached
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidArtifact

_PLACES = [
    ("gpt2", "mlp_out"),
    ("gpt2", "attn_out"),
    ("llama", "mlp_out"),
    ("neox", "mlp_out"),
    ("mamba", "mixer_out"),
    ("mamba", "mixer_in.x"),
    ("mamba", "mixer_in.gate"),
]


def _opened(model: Any, *edits: Edit) -> Opened:
    tensors, config = _edits.pack(edits, model)
    return Opened("edit", tensors, json.loads(json.dumps(config)), "artifact:1")


@contextmanager
def _in_place(model: Any, *edits: Edit) -> Iterator[None]:
    """The same edits in the weights."""
    sites, kept = Sites.of(model), []
    for edit in edits:
        place = sites.projection(edit.site, edit.layer or 0)
        weight = place.module.weight
        kept.append((weight, weight.detach().clone()))
        change = edit.up @ edit.down
        with torch.no_grad():
            if type(place.module).__name__ == "Conv1D":
                weight += change.mT
            else:
                weight[place.part or slice(None)] += change
    try:
        yield
    finally:
        for weight, before in reversed(kept):
            with torch.no_grad():
                weight.copy_(before)


@pytest.mark.parametrize(("family", "site"), _PLACES)
@pytest.mark.parametrize("rank", [1, 4])
def test_an_edit_is_the_edited_weight_and_leaves_no_trace(family: str, site: str, rank: int) -> None:
    model = of_family(family)
    edit = an_edit(model, site, rank=rank)
    before = logits(model)
    with attached(model, [_opened(model, edit)]):
        virtual = logits(model)
    with _in_place(model, edit):
        in_place = logits(model)
    assert (virtual - before).abs().max() > 0.1, "the edit does nothing"
    torch.testing.assert_close(virtual, in_place, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(("family", "site"), [("gpt2", "mlp_out"), ("llama", "attn_out"), ("mamba", "mixer_out")])
def test_several_edits_compose_in_order(family: str, site: str) -> None:
    model = of_family(family)
    first, second, same = (
        an_edit(model, site, 0, 2),
        an_edit(model, site, 1, 1, seed=1),
        an_edit(model, site, 1, 3, seed=2),
    )
    with attached(model, [_opened(model, first, second), _opened(model, same)]):
        virtual = logits(model)
    with _in_place(model, first, second, same):
        torch.testing.assert_close(virtual, logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "site"), [("gpt2", "mlp_out"), ("llama", "mlp_out"), ("mamba", "mixer_out")])
def test_generation_goes_through_the_edit_at_every_step(family: str, site: str) -> None:
    model = of_family(family)
    edit = an_edit(model, site, Sites.of(model).n_layers - 1, rank=8)
    edit = replace(edit, up=4 * edit.up)
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

    def generated() -> Any:
        with model.generate(PROMPT, **how) as tracer:
            result = tracer.result.save()
        return getattr(result, "sequences", result)

    before = generated()
    with attached(model, [_opened(model, edit)]):
        virtual = generated()
    with _in_place(model, edit):
        assert torch.equal(virtual, generated())
    assert not torch.equal(virtual, before)


def test_a_trace_sees_the_output_that_is_edited_and_edits_what_it_puts_in() -> None:
    model = of_family("gpt2")
    projection = model.transformer.h[1].mlp.c_proj
    edit = an_edit(model, "mlp_out")

    def traced() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with model.session():
            with model.trace(PROMPT):
                seen = projection.output.save()
            with model.trace(PROMPT):
                projection.input = projection.input * 2
                doubled = projection.output.save()
            with model.trace(PROMPT):
                projection.output[:] = 0
                zeroed = model.lm_head.output.save()
        return seen, doubled, zeroed

    bare = traced()
    with attached(model, [_opened(model, edit)]):
        virtual = traced()
    with _in_place(model, edit):
        in_place = traced()
    for one, other in zip(virtual, in_place, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert (virtual[0] - bare[0]).abs().max() > 1e-2
    torch.testing.assert_close(virtual[2], bare[2])  # what a trace writes is what the model goes on with


def test_gradients_are_those_of_the_edited_weights() -> None:
    model = of_family("llama")
    edit = an_edit(model, "mlp_out", rank=2)

    def gradient() -> torch.Tensor:
        with model.trace(PROMPT):
            state = model.model.layers[0].output
            with model.lm_head.output[0, -1].logsumexp(-1).backward():
                found = state.grad.save()
        return found

    with attached(model, [_opened(model, edit)]):
        virtual = gradient()
    with _in_place(model, edit):
        torch.testing.assert_close(virtual, gradient(), rtol=1e-3, atol=1e-5)


def test_the_source_of_an_edited_module_is_edited_too() -> None:
    model = of_family("mamba")
    edit = an_edit(model, "mixer_out")
    module = model.backbone.layers[1].mixer.out_proj

    def traced() -> torch.Tensor:
        with model.trace(PROMPT):
            inside = module.source.F_linear_0.output.save()
            found = model.lm_head.output.save()
        return found

    with attached(model, [_opened(model, edit)]):
        virtual = traced()
    with _in_place(model, edit):
        torch.testing.assert_close(virtual, traced(), rtol=0, atol=1e-4)


def test_gradients_reach_an_edit_that_is_being_trained() -> None:
    model = of_family("mamba")
    edit = an_edit(model, "mixer_in.x", rank=2)
    for matrix in (edit.down, edit.up):
        matrix.requires_grad_(True)
    with added(model, [edit]):
        model._module(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert edit.down.grad is not None
    assert edit.up.grad is not None
    assert edit.down.grad.abs().sum() > 0
    model._module.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    "how", [{}, {"use_rslora": True}, {"alpha_pattern": {"c_attn": 3}, "rank_pattern": {"c_proj": 2}}]
)
def test_a_lora_as_an_edit_is_what_peft_makes_of_it(tmp_path: Path, how: dict[str, Any]) -> None:
    torch.manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = tiny._gpt2().eval()
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, init_lora_weights=False, **how
    )
    adapted = peft.get_peft_model(module, config).eval()
    adapted.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
    model = of_family("gpt2")
    opened = Opened(
        "peft",
        load_file(tmp_path / "adapter_model.safetensors"),
        json.loads((tmp_path / "adapter_config.json").read_text()),
        "artifact:2",
    )
    with torch.no_grad(), attached(model, [opened]):
        torch.testing.assert_close(model._module(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


def test_every_field_of_pefts_is_plain_by_default_and_what_is_unknown_is_named(tmp_path: Path) -> None:
    peft.LoraConfig(r=4, target_modules=["c_attn"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    fields = {**dataclasses.asdict(peft.LoraConfig()), **config}
    model = of_family("gpt2")

    def read(**more: Any) -> None:
        assert not _edits.read(model, [Opened("peft", {}, {**fields, **more}, "x")])

    read(init_lora_weights="gaussian", use_rslora=True, lora_dropout=0.1, revision="main")
    read(a_new_field=None, another=False, a_third={})
    strange: dict[str, Any] = {
        "a_new_field": 3,
        "use_qalora": True,
        "kasa_config": {"beta": 1},
        "init_lora_weights": "pissa",
        "bias": "all",
        "ensure_weight_tying": True,
    }
    for field, value in strange.items():
        with pytest.raises(InvalidArtifact, match=f"`{field}` of x is .* may be more than a LoRA adds"):
            read(**{field: value})


def test_a_plain_module_of_torch_can_be_edited() -> None:
    module = tiny._llama().eval()
    ids = torch.tensor([[5, 6, 7]])
    edit = an_edit(module, "mlp_out")
    with torch.no_grad():
        before = module(input_ids=ids).logits
        with added(module, [edit]):
            virtual = module(input_ids=ids).logits
        with _in_place(module, edit):
            torch.testing.assert_close(virtual, module(input_ids=ids).logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(module(input_ids=ids).logits, before, rtol=0, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    model = of_family("mamba")
    good = _opened(model, an_edit(model, "mixer_out"))
    wrong = {
        "reads 256 and gives 128": Edit(torch.ones(1, 5), torch.ones(128, 1), "mixer_out", 1),
        "mixer_out, mixer_in.x, mixer_in.gate for edits": Edit(torch.ones(1, 5), torch.ones(5, 1), "mlp_out", 1),
        "has 0 to 5": Edit(torch.ones(1, 256), torch.ones(128, 1), "mixer_out", 6),
        "is never called": Edit(torch.ones(1, 8), torch.ones(256, 1), module="backbone.layers.0.mixer.dt_proj"),
        "has no module nowhere": Edit(torch.ones(1, 8), torch.ones(256, 1), module="nowhere"),
        "no linear module": Edit(torch.ones(1, 8), torch.ones(256, 1), module="backbone.norm_f"),
    }
    for words, edit in wrong.items():
        with pytest.raises(InvalidArtifact, match=words), attached(model, [_opened(model, edit)]):
            pass
    configs: dict[str, dict[str, Any]] = {
        "edits a gpt2; this model is a mamba": {**good.config, "model_type": "gpt2"},
        "no edit of format 1": {**good.config, "format": 2},
        "must be `rank_one` or `low_rank`": {**good.config, "edits": [{"layer": 1, "site": "mixer_out"}]},
        "lacks the tensor 1.u": {**good.config, "edits": list(good.config["edits"]) * 2},
        "must say `site` and `layer`": {**good.config, "edits": [{"form": "rank_one"}]},
    }
    for words, config in configs.items():
        with pytest.raises(InvalidArtifact, match=words), attached(model, [Opened("edit", good.tensors, config, "x")]):
            pass
    stray = {**good.tensors, "7.u": torch.ones(1)}
    with pytest.raises(InvalidArtifact, match=r"has the tensor 7\.u, which none"):
        _edits.read(model, [Opened("edit", stray, good.config, "x")])
    with pytest.raises(InvalidArtifact, match="only a LoRA"):
        _edits.read(model, [Opened("peft", {}, {"peft_type": "IA3"}, "x")])
    with pytest.raises(InvalidArtifact, match=r"`use_dora` of x is 'True'"):
        _edits.read(model, [Opened("peft", {}, {"peft_type": "LORA", "use_dora": True}, "x")])
    with pytest.raises(InvalidArtifact, match="is of the kind sae"):
        _edits.read(model, [Opened("sae", {}, {}, "x")])


def test_nothing_is_left_where_the_second_of_two_does_not_fit() -> None:
    model = of_family("gpt2")
    before = logits(model)
    good, bad = an_edit(model, "mlp_out"), Edit(torch.ones(1, 5), torch.ones(5, 1), "mlp_out", 1)
    with pytest.raises(InvalidArtifact), attached(model, [_opened(model, good), _opened(model, bad)]):
        pass
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
