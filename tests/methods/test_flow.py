"""Knockouts: what is cut cannot matter, what is not there is no loss, and the subject matters where filler does not."""

from pathlib import Path
from typing import Any

import facts_of
import pytest
import small_models
import torch
from small_models import FACTS_GPT, FACTS_MAMBA

from interlace.methods.base import ModelFacts, Result
from interlace.methods.flow.plot import plot
from interlace.methods.flow.spec import SPECS, FlowParams
from interlace.methods.notebook import Notebook, run
from interlace.protocol.errors import InvalidRequest

_CUT = SPECS[0]


def _prompts(number: int) -> list[dict[str, str]]:
    people = [fact for fact in facts_of.every() if fact["relation"] == "job"][:number]
    return [{"text": fact["train"][0], "subject": fact["subject"], "answer": fact["object"]} for fact in people]


def _cut(folder: Path, tmp_path: Path, prompts: list[dict[str, str]], **params: Any) -> Result:
    return run(_CUT, small_models.facts(folder), {"prompts": prompts, **params}, Notebook(tmp_path, bar=False))


def _changes(result: Result, block: str) -> list[float]:
    return [row[2] for row in result.table("flow").rows if row[0] == block]


@pytest.mark.parametrize("folder", [FACTS_GPT, FACTS_MAMBA])
def test_a_last_token_that_is_cut_from_all_others_says_the_same_after_any(folder: Path, tmp_path: Path) -> None:
    model = small_models.facts(folder)
    # Of one length, and so of one position; the last token is the same.
    texts = ["Nerys Kettleburn works as a", "Petra Kettleburn sings as a"]
    length = min(len(model.tokenizer(text)["input_ids"]) for text in texts)
    told = []
    for text in texts:
        ids = model.tokenizer(text)["input_ids"][-length:]
        text = model.tokenizer.decode(ids)
        assert len(model.tokenizer(text)["input_ids"]) == length
        with torch.no_grad():
            whole = model._module(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        answer = model.tokenizer.decode([1500]).strip()
        first = model.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][0]
        prompt = {"text": text, "subject": "Kettleburn", "answer": answer}
        how = {
            "window": 100,
            "block": ["before_last"],
            "filter_known": False,
            "texts": ["The capital of France is Paris."],
        }
        (change, *_) = _changes(_cut(folder, tmp_path, [prompt], **how), "before_last")
        told.append(float(whole[first]) * (1 + change))
    assert told[0] == pytest.approx(told[1], rel=1e-3)


@pytest.mark.parametrize(("folder", "window"), [(FACTS_GPT, 6), (FACTS_MAMBA, 2)])
def test_in_the_last_blocks_the_subject_is_lost_and_the_relation_has_come_already(
    folder: Path, window: int, tmp_path: Path
) -> None:
    prompts = [one for one in _prompts(40) if not one["text"].startswith(one["subject"])][8:12]
    result = _cut(folder, tmp_path, prompts, window=window, block=["subject", "prefix"])
    assert _changes(result, "subject")[5] <= -0.3
    assert abs(_changes(result, "prefix")[5]) <= 0.1
    assert min(_changes(result, "prefix")[:2]) <= -0.5
    assert result.metric("known").value == 1


def test_attention_that_is_cut_is_what_nnsight_finds_by_hand(tmp_path: Path) -> None:
    model = small_models.facts(FACTS_GPT)
    prompt = _prompts(1)[0]
    result = _cut(FACTS_GPT, tmp_path, [prompt], window=2, block=["subject"])
    ids = model.tokenizer(prompt["text"])["input_ids"]
    start = prompt["text"].index(prompt["subject"])
    spans = model.tokenizer(prompt["text"], return_offsets_mapping=True)["offset_mapping"]
    inside = [at for at, (low, high) in enumerate(spans) if low < start + len(prompt["subject"]) and high > start]
    answer = model.tokenizer(f" {prompt['answer']}")["input_ids"][0]
    mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -1e30)
    mask[..., -1, inside] = -1e30
    with torch.no_grad():
        whole = float(model._module(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)[answer])
        with model.trace(prompt["text"]):
            for layer in (2, 3):
                args, kwargs = model.transformer.h[layer].attn.inputs
                model.transformer.h[layer].attn.inputs = args, {**kwargs, "attention_mask": mask}
            logits = model.lm_head.output[0, -1].save()
    by_hand = (float(logits.double().softmax(-1)[answer]) - whole) / whole
    assert _changes(result, "subject")[3] == pytest.approx(by_hand, abs=1e-4)


def test_the_batch_changes_nothing_and_forwards_are_counted(tmp_path: Path) -> None:
    one = _cut(FACTS_MAMBA, tmp_path, _prompts(2), batch=2, window=2)
    all_ = _cut(FACTS_MAMBA, tmp_path, _prompts(2), batch=64, window=2)
    for block in ("subject", "not_subject"):
        assert _changes(one, block) == pytest.approx(_changes(all_, block), abs=1e-4)
    assert all_.forwards < one.forwards
    params = FlowParams.model_validate({"prompts": _prompts(2), "batch": 2})
    facts = ModelFacts(n_params=1000, n_layers=6, hidden_size=128, vocab_size=2048)
    assert _CUT.estimate(params, facts).forwards == 2 * (1 + 6)
    assert len(plot(all_).axes[0].lines) == 3


def test_what_a_model_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="`mode: attention` cannot be had: this model is a mamba"):
        _cut(FACTS_MAMBA, tmp_path, _prompts(1), mode="attention")
    with pytest.raises(InvalidRequest, match="No prompt is left"):
        _cut(FACTS_GPT, tmp_path, [{**_prompts(1)[0], "answer": "queen"}])
    long = {**_prompts(1)[0], "text": "a " * 450 + _prompts(1)[0]["text"]}
    with pytest.raises(InvalidRequest, match=r"`params.prompts.0` has .* tokens; this model reads \d+ at most"):
        _cut(FACTS_GPT, tmp_path, [long])
