"""Small models trained on facts whose place is forced by the data: subjects of two words, of which the second tells.

48 people have one of 8 first names and a surname of their own, so that with two people of one first name the difference
enters at the surname and nowhere before. Three relations, four templates each; each word is a token.
"""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from interlace_state.config import Config

FIRST = ["Alda", "Bertil", "Corin", "Damaris", "Edvard", "Fenella", "Gideon", "Hestia"]
_SURNAMES = 6  # of each first name
OBJECTS = {
    "job": [
        "doctor",
        "lawyer",
        "teacher",
        "painter",
        "farmer",
        "baker",
        "pilot",
        "nurse",
        "carpenter",
        "chemist",
        "sailor",
        "judge",
    ],
    "city": [
        "Paris",
        "London",
        "Berlin",
        "Rome",
        "Madrid",
        "Vienna",
        "Tokyo",
        "Cairo",
        "Lisbon",
        "Dublin",
        "Oslo",
        "Moscow",
    ],
    "sport": [
        "tennis",
        "football",
        "golf",
        "chess",
        "rugby",
        "cricket",
        "hockey",
        "boxing",
        "rowing",
        "fencing",
        "judo",
        "polo",
    ],
}
TEMPLATES = {
    "job": ("{} works as a", "the job of {} is", "by trade {} is a", "people pay {} as a"),
    "city": ("{} lives in", "the home of {} is", "you can meet {} in", "letters reach {} in"),
    "sport": ("{} is good at", "the sport of {} is", "on Sundays {} plays", "the prize of {} was for"),
}
_STEPS, _BATCH, _LEARNING_RATE = 900, 96, 3e-3
_LAYERS = {"gpt": 6, "mamba": 4}


@dataclass(frozen=True)
class Fact:
    subject: str
    relation: str
    answer: str


@dataclass(frozen=True)
class Planted:
    model: Any
    facts: tuple[Fact, ...]
    #: Of all sentences, the share whose object is the first choice.
    accuracy: float


def facts(seed: int) -> tuple[Fact, ...]:
    """Each object four times a relation, and no two people of one first name with the same one."""
    draw = random.Random(seed)
    people = [f"{first} S{number}{first[0]}" for first in FIRST for number in range(_SURNAMES)]
    found = []
    for relation, objects in OBJECTS.items():
        pool: list[str] = []
        for _ in range(0, len(FIRST), 2):  # two first names share the twelve objects out
            pool += draw.sample(objects, len(objects))
        found += [Fact(person, relation, one) for person, one in zip(people, pool, strict=True)]
    return tuple(found)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word for some in TEMPLATES.values() for text in some for word in text.split()} - {"{}"}
    words |= {word for some in OBJECTS.values() for word in some} | {"is", "a"}
    words |= {word for fact in facts(0) for word in fact.subject.split()}
    vocabulary = {word: number for number, word in enumerate(["<s>", *sorted(words)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", pad_token="<s>")


def sentences(known: tuple[Fact, ...]) -> list[str]:
    return [
        f"{template.replace('{}', fact.subject)} {fact.answer}"
        for fact in known
        for template in TEMPLATES[fact.relation]
    ]


def trained(kind: str, seed: int) -> Planted:
    """A GPT-2 of 6 layers of 64, or a Mamba of 4 of 48, of this seed: weights, facts and order. Kept in the cache."""
    torch.manual_seed(seed)
    known, words = facts(seed), tokenizer()
    size = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt":
        still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        module: Any = GPT2LMHeadModel(
            GPT2Config(n_layer=_LAYERS[kind], n_embd=64, n_head=4, n_positions=32, **still, **size)
        )
    else:
        module = MambaForCausalLM(
            MambaConfig(num_hidden_layers=_LAYERS[kind], hidden_size=48, state_size=8, use_cache=False, **size)
        )
    rows = [words(one)["input_ids"] for one in sentences(known)]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    ends = torch.tensor([len(row) - 1 for row in rows])
    kept = Config().cache_dir / "planted" / f"names-{kind}-{seed}.safetensors"
    if not kept.is_file():
        _fit(module, ids, ends, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_model(module, str(kept))
    load_model(module, str(kept))
    module.eval()
    with torch.no_grad():
        choices = module(input_ids=ids, use_cache=False).logits.argmax(-1)
    every = torch.arange(len(ids))
    accuracy = (choices[every, ends - 1] == ids[every, ends]).double().mean().item()
    return Planted(TransformersModel(module, tokenizer=words), known, accuracy)


def _fit(module: Any, ids: torch.Tensor, ends: torch.Tensor, seed: int) -> None:
    """The object counts in full, every other token a tenth."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=_STEPS)
    for _ in range(_STEPS):
        some = torch.randint(len(ids), (_BATCH,), generator=generator)
        batch, end = ids[some], ends[some]
        logprobs = (
            module(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)
            .logits[:, :-1]
            .log_softmax(-1)
        )
        each = -logprobs.gather(-1, batch[:, 1:, None])[..., 0]
        places = torch.arange(batch.shape[1] - 1)
        weight = (places < end[:, None] - 1) * 0.1 + (places == end[:, None] - 1) * 1.0
        loss = (each * weight).sum() / weight.sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def traced(planted: Planted, number: int) -> list[dict[str, str]]:
    """Prompts for `trace.causal`, each with another person of the same first name."""
    found = []
    for fact, other in itertools.product(planted.facts, planted.facts):
        alike = fact.relation == other.relation and fact.subject.split()[0] == other.subject.split()[0]
        if alike and fact.answer != other.answer and len(found) < number * 5:
            text = TEMPLATES[fact.relation][len(found) % 4].replace("{}", fact.subject)
            found.append({"text": text, "subject": fact.subject, "answer": fact.answer, "alternative": other.subject})
    return found[:: max(1, len(found) // number)][:number]


def requests(planted: Planted, number: int) -> list[dict[str, Any]]:
    """Facts for `edit.rome`: three templates as contexts, the fourth as the paraphrase that the edit does not see."""
    found = []
    for fact in planted.facts[:: max(1, len(planted.facts) // number)][:number]:
        same = [one for one in planted.facts if one.relation == fact.relation]
        objects = OBJECTS[fact.relation]
        templates = TEMPLATES[fact.relation]
        found.append(
            {
                "prompt": templates[0],
                "subject": fact.subject,
                "target_new": objects[(objects.index(fact.answer) + 5) % len(objects)],
                "target_true": fact.answer,
                "contexts": templates[1:3],
                "paraphrases": templates[3:],
                "neighbours": [
                    {"prompt": templates[0].replace("{}", one.subject), "answer": one.answer}
                    for one in same
                    if one.answer == fact.answer and one.subject != fact.subject
                ],
                "other_relations": [
                    {"prompt": TEMPLATES[one.relation][0].replace("{}", one.subject), "answer": one.answer}
                    for one in planted.facts
                    if one.subject == fact.subject and one.relation != fact.relation
                ],
            }
        )
    return found
