"""`elm.erase` on a small model that knows two made-up topics, and on a Mamba: what it erases, what it leaves alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import small_models
import tiny
import torch
from erasing import FACTS, PREFIXES, TOPICS, Kept, params
from nnsight.modeling.transformers import TransformersModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from interlace.methods import notebook
from interlace.methods.base import ModelFacts, Result
from interlace.methods.elm import guidance, metrics, statistics
from interlace.methods.elm.adapter import attached
from interlace.methods.elm.language import Language
from interlace.methods.elm.spec import SPECS, Concept, EraseParams, Evaluation, Lora, Question
from interlace.methods.notebook import Notebook
from interlace.methods.shared import edits
from interlace.protocol.errors import InvalidRequest

ERASE = SPECS[0]
SHORT = {"erased": {}, "retained": {}, "generations": 2, "generation_tokens": 3, "retained_texts": None}


@pytest.fixture(scope="module")
def topics() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TOPICS)
    return TransformersModel(str(TOPICS), task="text-generation", dispatch=True, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def erased(topics: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    report = Notebook(tmp_path_factory.mktemp("erased"), seed=1, bar=False)
    evaluation = {"relearn_steps": 20}
    return notebook.run(ERASE, topics, params(evaluation={**params()["evaluation"], **evaluation}), report)


def log_probs(*rows: list[float]) -> Iterator[torch.Tensor]:
    return (torch.tensor([row], dtype=torch.float64).log() for row in rows)


def wish(**fields: Any) -> EraseParams:
    return EraseParams(concept=PREFIXES, concept_texts=["a"], retain_texts=["b"], **fields)  # type: ignore[arg-type]


def test_the_target_is_what_equation_6_says() -> None:
    base, expert, novice = log_probs([0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.2, 0.4, 0.4])
    expected = torch.tensor([0.5 * (2 / 7) ** 2, 0.3 * 2**2, 0.2 * 4**2], dtype=torch.float64)
    torch.testing.assert_close(guidance.target(base, expert, novice, wish(eta=2))[0], expected / expected.sum())


def test_without_guidance_the_target_is_the_base_model() -> None:
    base, expert, novice = torch.randn(3, 6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same = base.softmax(-1)
    torch.testing.assert_close(guidance.target(base, expert, novice, wish(eta=0)), same, rtol=0, atol=1e-14)
    torch.testing.assert_close(guidance.target(base, novice, novice, wish(eta=500)), same, rtol=0, atol=1e-14)
    assert not torch.allclose(guidance.target(base, expert, novice, wish(eta=1)), same)


def test_at_a_temperature_the_unlikely_count() -> None:
    base, expert, novice = log_probs([0.9, 0.09, 0.01], [0.9, 0.09, 0.01], [0.96, 0.02, 0.02])
    plain = guidance.target(base, expert, novice, wish(eta=1))[0]
    torch.testing.assert_close(plain, novice.exp()[0])
    warm = guidance.target(base, expert, novice, wish(eta=1, distil_temperature=10))[0]
    torch.testing.assert_close(warm, plain**0.1 / (plain**0.1).sum())


def test_a_ramp_begins_at_its_start_and_ends_at_eta() -> None:
    base, expert, novice = torch.randn(3, 5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ramp = guidance.target(base, expert, novice, wish(eta=9, eta_schedule="linear_ramp"))
    for row, eta in ((0, 1), (2, 5), (4, 9)):
        torch.testing.assert_close(ramp[row], guidance.target(base, expert, novice, wish(eta=eta))[row])


def test_what_the_base_model_never_says_is_kept_out_before_guidance_only() -> None:
    base, expert, novice = log_probs([0.6, 0.4 - 1e-9, 1e-9], [0.8, 0.2 - 1e-12, 1e-12], [0.5, 0.5 - 1e-6, 1e-6])
    published = guidance.target(base, expert, novice, wish(eta=5, top_k=2))[0]
    ours = guidance.target(base, expert, novice, wish(eta=5, plausible_k=2))[0]
    assert published.argmax() == 2
    assert ours[2] == 0
    assert ours.argmax() == 1


def test_the_code_s_variant() -> None:
    code = wish(variant="code", fluency={"gamma": 2}, top_k=7)
    assert (code.eta, code.eta_schedule, code.temperature, code.retain_target) == (1000, "linear_ramp", 1.2, "argmax")
    assert (code.lora.rank, code.fluency.sees_prompt) == (256, False)
    assert (code.fluency.gamma, code.top_k) == (2, 7), "what is given counts"
    paper = wish()
    assert (paper.eta, paper.eta_schedule, paper.lora.rank, paper.retain_target) == (500, "constant", 4, "soft")
    assert EraseParams.model_validate(code.model_dump()) == code


def test_it_erases_one_topic_and_leaves_the_other(erased: Result) -> None:
    value = {(metric.name, metric.split): metric for metric in erased.metrics}
    assert value["cloze_acc", "erased/before"].value > 0.98
    assert value["cloze_acc", "erased/after"].value < 0.02
    assert value["cloze_acc", "retained/after"].value > 0.97
    assert value["leak", "erased/before"].value > 0.9
    assert value["leak", "erased/after"].value <= 0.05
    # The two-sided goal: as the base model that plays the novice, neither better nor worse.
    novice, after = value["mcq_acc", "erased/novice"], value["mcq_acc", "erased/after"]
    assert value["mcq_acc", "erased/before"].value > 0.98
    assert novice.n == after.n == 108
    assert novice.ci95 is not None
    assert novice.ci95[0] < after.value < novice.ci95[1]
    assert value["retained_ppl", "retained/after"].value < 1.1 * value["retained_ppl", "retained/before"].value
    assert value["r_ppl_novice", "erased/after"].value < value["r_ppl_novice", "erased/before"].value
    assert all(metric.seed == 1 for metric in erased.metrics)


def test_its_first_step_is_the_base_model(erased: Result) -> None:
    first, last = erased.table("losses").rows[0], erased.table("losses").rows[-1]
    assert (first[0], first[3]) == (1, 0.0)
    assert last[0] == 60
    assert isinstance(last[3], float)
    assert last[3] > 0
    assert isinstance(first[1], float)
    assert isinstance(last[1], float)
    assert last[1] < first[1]


def test_a_relearning_attack_and_probes_are_reported(erased: Result) -> None:
    losses = [row[1] for row in erased.table("relearning").rows]
    assert len(losses) == 20
    assert losses[-1] < losses[0]  # type: ignore[operator]
    assert erased.metric("cloze_acc", "erased/relearned").n == 108
    layers = erased.table("layers")
    assert [row[0] for row in layers.rows] == [0, 1, 2, 3, 4]
    assert layers.rows[0][-1] == layers.rows[0][-2], "no adapter is below the first block"
    assert layers.rows[-1][-1] != layers.rows[-1][-2]
    assert len(erased.table("samples").rows) == 20


def test_without_its_losses_nothing_is_erased(topics: Any, tmp_path: Path) -> None:
    changes = {"lambdas": (0, 1, 0), "steps": 20, "evaluation": {"probes": False, "generations": 0}}
    control = notebook.run(ERASE, topics, params(**changes), Notebook(tmp_path, seed=1, bar=False))
    assert control.metric("cloze_acc", "erased/after").value > 0.98
    assert control.metric("mcq_acc", "erased/after").value > 0.98
    assert control.table("losses").rows[0][1] is None


def test_stock_peft_loads_the_adapter(erased: Result, topics: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(TOPICS)
    folder = erased.adapter  # type: ignore[attr-defined]
    assert erased.artifacts == (folder,)
    asked = params()["evaluation"]["erased"]["cloze"]
    adapted = peft.PeftModel.from_pretrained(base, folder).eval()
    right = 0
    with torch.no_grad():
        for item in asked:
            logits = adapted(**topics.tokenizer(item["prompt"], return_tensors="pt")).logits[0, -1]
            right += topics.tokenizer.decode(int(logits.argmax())) == item["answer"]
    assert right / len(asked) == erased.metric("cloze_acc", "erased/after").value


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_an_adapter_in_stock_peft_is_the_one_that_was_trained(family: str, tmp_path: Path) -> None:
    model = small_models.of_family.__wrapped__(family)  # one of its own: PEFT leaves its weights frozen
    ids = model.tokenizer(small_models.PROMPT, return_tensors="pt")["input_ids"]
    report = Notebook(tmp_path, bar=False)
    with attached(model._module, Lora(layers=(0, 1), rank=2)) as adapter:
        for number, one in enumerate(adapter.parameters.values()):
            one.data = torch.randn(one.shape, generator=torch.Generator().manual_seed(number)) / 10
        with torch.no_grad():
            trained = model._module(ids).logits
            with adapter.disabled():
                bare = model._module(ids).logits
        folder = adapter.keep(report, "elm")
    with torch.no_grad():
        assert torch.equal(model._module(ids).logits, bare)
        with edits.attached(model, [report.open(folder)]):
            torch.testing.assert_close(model._module(ids).logits, trained, rtol=0, atol=1e-5)
        loaded = peft.PeftModel.from_pretrained(model._module, folder).eval()
        torch.testing.assert_close(loaded(ids).logits, trained, rtol=0, atol=1e-6)
    assert (trained - bare).abs().max() > 1e-3


def test_the_model_is_left_as_it_was(topics: Any, tmp_path: Path) -> None:
    module = topics._module
    module.transformer.h[1].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flags = {name: one.requires_grad for name, one in module.named_parameters()}
    modules = list(module.named_modules())
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules()]
    was = small_models.logits(topics, "babaka cures people of")
    notebook.run(ERASE, topics, params(steps=2, evaluation=SHORT), Notebook(tmp_path, bar=False))
    with pytest.raises(InvalidRequest):
        notebook.run(ERASE, topics, params(lora={"targets": ["nowhere"]}), Notebook(tmp_path, bar=False))
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name: one.requires_grad for name, one in module.named_parameters()} == flags
    assert list(module.named_modules()) == modules
    assert [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules()] == hooks
    assert not module.training
    assert not hasattr(module, "peft_config")
    assert torch.equal(small_models.logits(topics, "babaka cures people of"), was)
    module.transformer.h[1].requires_grad_(True)


def test_a_run_that_was_cut_ends_as_one_that_was_not(topics: Any, tmp_path: Path) -> None:
    given = params(steps=6, evaluation=SHORT, lora={"layers": (0, 1), "dropout": 0.2})
    whole = Kept(tmp_path / "whole", at=3)
    expected = notebook.run(ERASE, topics, given, whole)
    assert whole.kept is not None
    torch.randn(3)
    again = Kept(tmp_path / "again", found=whole.kept)
    result = notebook.run(ERASE, topics, given, again)
    assert result.table("losses") == expected.table("losses")
    assert result.metrics == expected.metrics
    one, other = (report.open(run.artifacts[0]) for report, run in ((whole, expected), (again, result)))
    assert all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())
    assert again.cost["backwards"] == whole.cost["backwards"] // 2


def test_a_cancelled_run_gives_what_there_is(topics: Any, tmp_path: Path) -> None:
    report = Kept(tmp_path, cancel=2)
    result = notebook.run(ERASE, topics, params(steps=50, evaluation=SHORT), report)
    assert len(result.table("losses").rows) == 2
    assert report.open(result.artifacts[0]).kind == "peft"
    assert any("Cancelled after 2 of 50" in warning for warning in result.warnings)


def test_mamba_is_edited_where_peft_refuses(tmp_path: Path) -> None:
    model = small_models.of_family("mamba")
    facts = json.loads((small_models.FACTS_MAMBA / "facts.json").read_text())
    texts = {
        relation: [f"{fact['train'][0]} {fact['object']}." for fact in facts if fact["relation"] == relation][:8]
        for relation in ("capital", "currency")
    }
    cloze = [{"prompt": fact["train"][0], "answer": fact["object"]} for fact in facts if fact["relation"] == "capital"]
    given = {
        "concept": {"expert_prefixes": ["A city is "], "novice_prefixes": ["A dog is "]},
        "concept_texts": texts["capital"],
        "retain_texts": texts["currency"],
        "lora": {"layers": (1, 2)},
        "lr": 1e-2,
        "steps": 3,
        "batch": 2,
        "grad_accum": 1,
        "fluency": {"redirects": [], "prompt_chars": (8, 20), "new_tokens": (3, 4), "samples": 4},
        "evaluation": {"erased": {"cloze": cloze[:8]}, "generations": 2, "generation_tokens": 3},
    }
    report = Notebook(tmp_path, seed=0, bar=False)
    was = small_models.logits(model)
    result = notebook.run(ERASE, model, given, report)
    opened = report.open(result.artifacts[0])
    assert opened.kind == "edit"
    assert {entry["module"].rpartition(".")[2] for entry in opened.config["edits"]} == {"in_proj", "x_proj", "out_proj"}
    assert result.table("losses").rows[0][3] == 0.0
    assert result.metric("cloze_acc", "erased/before").value == 1.0
    assert torch.equal(small_models.logits(model), was)
    with edits.attached(model, [opened]):
        assert (small_models.logits(model) - was).abs().max() > 1e-3
    given["lora"] = {"layers": (1, 2), "targets": ["in_proj", "x_proj"]}
    result = notebook.run(ERASE, model, given, report)
    assert report.open(result.artifacts[0]).kind == "peft"


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_rows_that_share_a_pass_are_as_alone(family: str, tmp_path: Path) -> None:
    model = Language.of(small_models.of_family(family), Notebook(tmp_path, bar=False))
    rows = [model.encode(text) for text in ("The capital of France is", "The currency of Japan is the", "The")]
    together = model.logits(rows)
    for row, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(model.logits([row])[0], logits[: len(row)], rtol=0, atol=1e-5)
        log, cache = model.follow([row[:1]])
        for token in row[1:]:
            log, cache = model.follow([[token]], cache)
        torch.testing.assert_close(log[0], logits[len(row) - 1].double().log_softmax(-1), rtol=0, atol=1e-4)


def test_letters_are_compared_after_the_listed_options(tmp_path: Path) -> None:
    model = small_models.of_family("llama")
    asked = [Question(question=f"Which is {n}?", choices=("one", "two", "three"), answer=n) for n in range(3)]
    found = metrics.choose(Language.of(model, Notebook(tmp_path, bar=False)), asked, Evaluation(scoring="letters"))
    for one, rank, right in zip(asked, found.ranks, found.right, strict=True):
        text = f"{one.question}\nA. one\nB. two\nC. three\nAnswer:"
        logits = small_models.logits(model, text)[0, -1]
        letters = [logits[model.tokenizer(f" {letter}")["input_ids"][-1]] for letter in "ABC"]
        assert rank == sum(other > letters[one.answer] for other in letters)
        assert right == (rank == 0)


def test_guided_texts_leave_out_what_the_expert_knows(topics: Any, tmp_path: Path) -> None:
    model = Language.of(topics, Notebook(tmp_path, bar=False))
    own = [fact for fact in FACTS if fact["topic"] == "healers"][:30]
    prompts = [model.encode(fact["prompts"][0]) for fact in own]
    contexts = tuple(model.encode(prefix[0]) for prefix in PREFIXES.values())
    written = {
        gamma: guidance.write(model, prompts, 1, 0, contexts=(contexts[0], contexts[1]), gamma=gamma)
        for gamma in (0.0, 3.0)
    }
    right = {
        gamma: sum(model.decode(row) == fact["answer"] for row, fact in zip(rows, own, strict=True))
        for gamma, rows in written.items()
    }
    assert right[0.0] >= 27
    assert right[3.0] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"layers": (2, 4)}}, r"`lora.layers` is \[2, 4\], but the model has the blocks 0 to 3"),
        ({"lora": {"layers": (0, 0), "targets": ["q_proj"]}}, "attn.c_attn"),
        ({"evaluation": {"generation_tokens": 100}}, "`evaluation.generation_tokens` needs rows of .* at most 64"),
        ({"concept_texts": ["a"]}, "`concept_texts` has no text of 2 tokens or more"),
    ],
)
def test_what_cannot_be_is_said(topics: Any, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        notebook.run(ERASE, topics, params(**changes), Notebook(tmp_path, bar=False))


def test_a_model_that_does_not_write_is_refused(tmp_path: Path) -> None:
    encoder = TransformersModel(tiny._bert(), tokenizer=tiny.tokenizer(is_encoder=True), task="fill-mask")
    with pytest.raises(InvalidRequest, match="BertForMaskedLM; this method takes a causal language model"):
        notebook.run(ERASE, encoder, params(), Notebook(tmp_path, bar=False))


def test_keywords_go_into_the_published_prefixes() -> None:
    concept = Concept(keywords=("wands", "spells and potions"))
    assert len(concept.expert) == len(concept.novice) == 10
    assert concept.expert[2].startswith("An authority on wands, spells, potions has written this text")
    assert concept.novice[1].startswith(
        "This passage is from a beginner who knows nothing about wands, spells, potions"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"eta": -1}, "eta"),
        ({"concept": {}}, "give either keywords"),
        ({"concept": {"expert_prefixes": ["a"]}}, "go together"),
        ({"lora": {"layers": (3, 1)}}, "first <= last"),
        ({"lambdas": (1, 1)}, "lambdas"),
        ({"lambdas": (0, 0, 0)}, "at least one"),
        ({"concept_texts": []}, "concept_texts"),
        (
            {"evaluation": {"erased": {"choices": [{"question": "q", "choices": ["a", "b"], "answer": 2}]}}},
            "answer is 2",
        ),
        ({"etta": 1}, "etta"),
    ],
)
def test_wrong_params_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EraseParams.model_validate({"concept": PREFIXES, "concept_texts": ["a"], "retain_texts": ["b"], **fields})


def test_the_estimate_is_near_what_it_costs(topics: Any, tmp_path: Path) -> None:
    given = params(steps=4, evaluation=SHORT)
    facts = ModelFacts(n_params=220_000, n_layers=4, hidden_size=64, vocab_size=len(topics.tokenizer))
    told = ERASE.estimate(EraseParams.model_validate(given), facts)
    report = Notebook(tmp_path, bar=False)
    notebook.run(ERASE, topics, given, report)
    assert told.backwards == report.cost["backwards"] == 12
    assert 0.5 < told.forwards / report.cost["forwards"] < 2
    more = ERASE.estimate(EraseParams.model_validate({**given, "steps": 8}), facts)
    assert more.tokens > told.tokens
    assert told.peak_bytes > 0


def test_statistics_against_known_values() -> None:
    assert statistics.chance_p(8, [0.5] * 10) == pytest.approx(0.109375)
    assert statistics.chance_p(0, [0.25] * 20) == pytest.approx(0.00711, abs=1e-5), "far below chance is knowledge"
    assert statistics.chance_p(1, [0.5, 0.25]) == pytest.approx(1.0)
    assert statistics.paired_p([True] * 6 + [False], [False] * 7) == pytest.approx(2 / 64)
    even = [i % 4 for i in range(400)]
    assert statistics.uniform_p(even, [4] * 400, 0) > 0.2
    assert statistics.uniform_p([0] * 150 + even[:250], [4] * 400, 0) < 1e-6
