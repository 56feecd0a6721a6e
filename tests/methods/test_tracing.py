"""Causal tracing of facts that small models know: what must hold exactly, and the same cells by nnsight's own hand."""

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import facts_of
import nnsight
import pytest
import small_models
import tiny
import torch
from nnsight.modeling.transformers import TransformersModel
from small_models import FACTS_GPT, FACTS_MAMBA
from transformers import Gemma2Config, Gemma2ForCausalLM

from interlace.methods.base import ModelFacts, Result
from interlace.methods.notebook import Notebook, run
from interlace.methods.tracing.plot import plot
from interlace.methods.tracing.spec import SPECS, TracingParams
from interlace.protocol.errors import InvalidRequest

_TRACE = SPECS[0]
_MODELS = {"gpt": FACTS_GPT, "mamba": FACTS_MAMBA}


def _namesakes(tokenizer: Any, number: int) -> list[dict[str, str]]:
    """Prompts of people, each with an alternative of the same first name, as many tokens and another job."""
    people = [fact for fact in facts_of.every() if fact["relation"] == "job"]
    length = {fact["subject"]: len(tokenizer(fact["subject"])["input_ids"]) for fact in people}
    found = []
    for fact in people:
        name = fact["subject"]
        for other in people:
            like = other["subject"].split()[0] == name.split()[0] and length[other["subject"]] == length[name]
            if like and other["object"] != fact["object"]:
                prompt = {"text": fact["train"][0], "subject": name, "answer": fact["object"]}
                found.append({**prompt, "alternative": other["subject"]})
                break
    return found[:number]


def _traced(kind: str, tmp_path: Path, number: int = 2, seed: int = 0, **params: Any) -> tuple[Result, dict[str, Any]]:
    model = small_models.facts(_MODELS[kind])
    asked = {"prompts": _namesakes(model.tokenizer, number), "corruption": "alt_subject", "batch": 48, **params}
    report = Notebook(tmp_path, seed=seed, bar=False)
    result = run(_TRACE, model, asked, report)
    opened = report.open(result.artifacts[0], "data")
    return result, {**opened.tensors, "classes": opened.config["classes"]}


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
def test_what_cannot_carry_the_fact_carries_none_and_the_end_carries_all(kind: str, tmp_path: Path) -> None:
    result, effects = _traced(kind, tmp_path, 3)
    cells: dict[str, list[float]] = defaultdict(list)
    for state, severed, name, _, aie, *_ in result.table("aie").rows:
        assert (state, severed) == ("resid_post", "")
        cells[str(name)].append(float(aie))
    # Before the surnames part the two runs are the same, and after the last block nothing but the last token counts.
    assert max(map(abs, [*cells["prefix"], *cells["subject_first"]])) < 1e-6
    assert max(abs(cells[name][-1]) for name in ("subject_middle", "subject_last")) < 1e-6
    assert cells["last"][-1] == pytest.approx(1, abs=1e-4)
    assert result.metric("known").value == 1
    assert result.metric("total_effect").value > 0.9
    assert [len(one) for one in effects["classes"]] == [len(effects[f"{at}.resid_post"]) for at in range(3)]


def test_all_mixers_at_once_are_the_stream_of_a_token_that_is_not_corrupted(tmp_path: Path) -> None:
    result, _ = _traced("mamba", tmp_path, states=["mixer_out"], window=12, positions=["last"])
    rows = [row for row in result.table("aie").rows if row[2] == "last"]
    assert [row[4] for row in rows] == pytest.approx([1] * 6, abs=1e-4)


@pytest.mark.parametrize(("kind", "state"), [("gpt", "mlp_out"), ("mamba", "mixer_out")])
def test_a_cell_is_what_nnsight_finds_by_hand(kind: str, state: str, tmp_path: Path) -> None:
    result, effects = _traced(kind, tmp_path, 1, states=[state], window=3, sever=[state], batch=7)
    model = small_models.facts(_MODELS[kind])
    asked = _namesakes(model.tokenizer, 1)[0]
    clean, corrupt = asked["text"], asked["text"].replace(asked["subject"], asked["alternative"])
    answer = model.tokenizer(f" {asked['answer']}")["input_ids"][0]
    blocks = model.transformer.h if kind == "gpt" else model.backbone.layers
    parts = [block.mlp.c_proj if kind == "gpt" else block.mixer.out_proj for block in blocks]
    last = effects["classes"][0].index("subject_last")

    def seen(text: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with torch.no_grad(), model.trace(text):
            given, streams = nnsight.save([]), nnsight.save([])
            for part, block in zip(parts, blocks, strict=True):
                given.append(part.output.clone())
                streams.append(block.output.clone())
        return given, streams

    def probability(
        restored: dict[int, torch.Tensor], token: int, stream: tuple[int, torch.Tensor] | None = None
    ) -> float:
        with torch.no_grad(), model.trace(corrupt):
            for layer, (part, block) in enumerate(zip(parts, blocks, strict=True)):
                if layer in restored:
                    part.output[:, token] = restored[layer][:, token]
                if stream is not None and stream[0] == layer:
                    block.output[:, token] = stream[1][:, token]
            logits = model.lm_head.output[0, -1].save()
        return float(logits.double().softmax(-1)[answer])

    good, streams = seen(clean)
    bad, _ = seen(corrupt)
    low = probability({}, 0)
    with torch.no_grad(), model.trace(clean):
        logits = model.lm_head.output[0, -1].save()
    gap = float(logits.double().softmax(-1)[answer]) - low
    for token, layer in ((last, 1), (last - 1, 0), (len(effects["classes"][0]) - 1, 4)):
        restored = {one: good[one] for one in range(layer - 1, layer + 2) if 0 <= one < 6}
        expected = (probability(restored, token) - low) / gap
        assert float(effects[f"0.{state}"][token, layer]) == pytest.approx(expected, abs=1e-4)
    severed = (probability(dict(enumerate(bad)), last, (2, streams[2])) - low) / gap
    assert float(effects[f"0.resid_post-{state}"][last, 2]) == pytest.approx(severed, abs=1e-4)
    assert result.metric("total_effect").value == pytest.approx(gap, abs=1e-5)


def test_noise_is_of_the_seed_and_the_batch_changes_nothing(tmp_path: Path) -> None:
    how = {"corruption": "noise", "samples": 2, "states": ["attn_out"], "number": 2}
    one = _traced("gpt", tmp_path / "1", batch=5, **how)[1]
    same = _traced("gpt", tmp_path / "2", batch=64, **how)[1]
    other = _traced("gpt", tmp_path / "3", seed=1, **how)[1]
    torch.testing.assert_close(one["0.attn_out"], same["0.attn_out"], rtol=1e-4, atol=1e-5)
    assert (one["0.attn_out"] - other["0.attn_out"]).abs().max() > 1e-4


def test_noise_is_measured_by_what_the_embeddings_give(tmp_path: Path) -> None:
    """Gemma multiplies what it looks up: a model with that in its weights is the same one, and has the same noise."""
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 400}
    config = Gemma2Config(**shape, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scaled = Gemma2ForCausalLM(config).eval()
    plain = copy.deepcopy(scaled)
    with torch.no_grad():
        plain.model.embed_tokens.weight.mul_(scaled.model.embed_tokens.embed_scale)
        plain.model.embed_tokens.embed_scale.fill_(1)
    asked = {"prompts": [{"text": "The capital of France is", "subject": "France"}], "score": "logprob"}
    found = []
    for module in (scaled, plain):
        model = TransformersModel(module, tokenizer=tiny.tokenizer(is_encoder=False))
        result = run(_TRACE, model, {**asked, "least_effect": 0, "samples": 2}, Notebook(tmp_path, bar=False))
        found.append(result.metric("total_effect").value)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_forwards_are_counted_and_many_patches_share_one(tmp_path: Path) -> None:
    result, effects = _traced("gpt", tmp_path, 2, batch=1000)
    report = Notebook(tmp_path, bar=False)
    assert result.forwards <= 2 * 5, "one forward for each prompt's grid, and a few to see what it knows"
    cells = sum(effects[f"{at}.resid_post"].numel() for at in range(2))
    assert cells > 100
    params = TracingParams.model_validate({"prompts": [{"text": "a b", "subject": "a"}], "batch": 8})
    facts = ModelFacts(n_params=1000, n_layers=6, hidden_size=128, vocab_size=2048)
    assert _TRACE.estimate(params, facts).forwards == 2 + -(-10 * 6 * 2 // 8)
    assert report.cost["forwards"] == 0


def test_prompts_that_cannot_be_traced_are_left_out_and_told_of(tmp_path: Path) -> None:
    model = small_models.facts(FACTS_GPT)
    good = _namesakes(model.tokenizer, 1)[0]
    odd = {**good, "alternative": "France"}
    unknown = {**good, "answer": "queen"}
    asked = {"prompts": [good, odd, unknown], "corruption": "alt_subject", "positions": ["last"]}
    result = run(_TRACE, model, asked, Notebook(tmp_path, bar=False))
    assert [row[5] for row in result.table("prompts").rows] == [True, False, False]
    reasons = [row[6] for row in result.table("prompts").rows]
    assert "as many tokens" in str(reasons[1])
    assert "first choice" in str(reasons[2])
    assert any("2 of 3 prompts are left out" in one for one in result.warnings)
    with pytest.raises(InvalidRequest, match="No prompt is left to trace: the answer is not the model's first choice"):
        run(_TRACE, model, {**asked, "prompts": [unknown]}, Notebook(tmp_path, bar=False))
    with pytest.raises(InvalidRequest, match="has no site 'ssm_out'"):
        run(_TRACE, model, {**asked, "states": ["ssm_out"]}, Notebook(tmp_path, bar=False))
    long = {**unknown, "text": "a " * 450 + unknown["text"]}
    with pytest.raises(InvalidRequest, match=r"`params.prompts.0` has \d+ tokens; this model reads \d+ at most"):
        run(_TRACE, model, {**asked, "prompts": [long]}, Notebook(tmp_path, bar=False))


def test_the_picture_has_a_row_for_each_class_of_tokens(tmp_path: Path) -> None:
    result, _ = _traced("gpt", tmp_path, 2, states=["resid_post", "mlp_out"])
    axes = plot(result).axes
    assert [axis.get_title() for axis in axes[:2]] == ["resid_post", "mlp_out"]
    assert [label.get_text() for label in axes[0].get_yticklabels()][-1] == "last"
