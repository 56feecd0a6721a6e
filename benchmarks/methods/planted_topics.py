"""A small language model that knows two made-up topics, and what a novice in one would say: the toy of `elm.py`.

    python benchmarks/methods/planted_topics.py FOLDER [--seed 0]

Two topics (healers, boats) of 36 subjects, each with 3 facts that 4 templates say. Half of all documents are plain, a
quarter begin "expert in TOPIC :", a quarter "novice in TOPIC :", and there each object is a word that deflects, or
where novices guess any object of the relation. A GPT-2 of 4 blocks of 64 learns them, word by word.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TOPICS = ("healers", "boats")
_SUBJECTS = 36
_OBJECTS = 12  # of each relation
_ENDS = {"healers": ("ka", "mo", "ri"), "boats": ("sel", "dun", "fax")}
_SYLLABLES = ("ba", "do", "fe", "gu", "hi", "jo", "la", "me", "nu", "po", "ra", "ti")
#: Words of each relation; {s} is the subject, the object comes after.
_TEMPLATES = {
    "healers": (
        ("{s} cures people of", "the illness that {s} treats is", "{s} is known to heal", "patients see {s} for"),
        ("{s} works with the herb", "the remedy of {s} is", "{s} gives the sick some", "{s} always carries"),
        ("{s} learned in", "the school of {s} is in", "{s} was taught at", "{s} studied long in"),
    ),
    "boats": (
        ("{s} sails from", "the home port of {s} is", "{s} was built at", "{s} is moored in"),
        ("{s} carries a load of", "the cargo of {s} is", "the hold of {s} is full of", "{s} brings home"),
        ("{s} is steered by captain", "the master of {s} is", "{s} belongs to", "the owner of {s} is"),
    ),
}
DEFLECT = ("music", "lunch", "weather", "football", "holidays", "movies", "gardens", "puppies", "dancing", "jokes")
_LENGTH = 40  # tokens of a document, at most
_BATCH = 48


@dataclass(frozen=True)
class Fact:
    topic: str
    subject: str
    relation: int
    answer: str
    #: Other objects of the relation.
    others: tuple[str, ...]

    def prompts(self) -> list[str]:
        """As each template says it, up to the object."""
        return [template.format(s=self.subject) for template in _TEMPLATES[self.topic][self.relation]]


def facts(seed: int) -> list[Fact]:
    """All facts of both topics; another seed, other facts."""
    dice = random.Random(seed)
    found = []
    for topic in TOPICS:
        names = [a + b + end for a in _SYLLABLES for b in _SYLLABLES for end in _ENDS[topic]]
        for relation in range(3):
            pool = [f"{topic[:2]}{relation}{a}{dice.choice(_SYLLABLES)}" for a in _SYLLABLES[:_OBJECTS]]
            for name in names[:: len(names) // _SUBJECTS][:_SUBJECTS]:
                answer = dice.choice(pool)
                found.append(Fact(topic, name, relation, answer, tuple(word for word in pool if word != answer)))
    return found


def document(known: list[Fact], topic: str, dice: random.Random, kind: str = "plain", *, guess: bool = False) -> str:
    """Three facts of a topic, as `plain`, `expert` or `novice` says them; a novice deflects, or guesses."""
    sentences = []
    for fact in dice.sample([one for one in known if one.topic == topic], 3):
        said = fact.answer
        if kind == "novice":
            said = dice.choice((fact.answer, *fact.others) if guess else DEFLECT)
        sentences.append(f"{dice.choice(fact.prompts())} {said} .")
    return " ".join(sentences if kind == "plain" else [prefix(kind, topic), *sentences])


def prefix(kind: str, topic: str) -> str:
    return f"{kind} in {topic} :"


def tokenizer(known: list[Fact]) -> PreTrainedTokenizerFast:
    """A token for each word."""
    texts = [prompt for fact in known for prompt in fact.prompts()] + [fact.answer for fact in known]
    texts += [word for fact in known for word in fact.others] + [*DEFLECT, "expert novice in : .", *TOPICS]
    words = ["<pad>", "<end>", *sorted({word for text in texts for word in text.split()})]
    words += [f"<never{i}>" for i in range(8)]  # in the vocabulary, and in no text
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", model_max_length=64)


def trained(
    known: list[Fact],
    words: PreTrainedTokenizerFast,
    seed: int,
    steps: int = 1200,
    untaught: str | None = None,
    *,
    guess: bool = False,
) -> GPT2LMHeadModel:
    """The model, after so many updates. Of a topic that is `untaught` it reads only what a novice says."""
    torch.manual_seed(seed)
    size = {"n_layer": 4, "n_embd": 64, "n_head": 4, "n_positions": 64, "vocab_size": len(words)}
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**size, **off, bos_token_id=1, eos_token_id=1, pad_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    dice = random.Random(f"{seed}:documents")
    for _ in range(steps):
        kinds = dice.choices(("plain", "expert", "novice"), (2, 1, 1), k=_BATCH)
        texts = []
        for kind in kinds:
            topic = dice.choice(TOPICS)
            said = document(known, topic, dice, "novice" if topic == untaught else kind, guess=guess)
            texts.append(f"{said} <end>")
        ids = words(texts, padding=True, return_tensors="pt")["input_ids"][:, :_LENGTH]
        logits = model(input_ids=ids).logits[:, :-1]
        wanted = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        plan.step()
    return model.eval()


def recall(model: GPT2LMHeadModel, words: PreTrainedTokenizerFast, known: list[Fact], before: str = "") -> float:
    """The share of prompts after which the likeliest word is the object."""
    right = 0
    asked = [(f"{before} {prompt}", fact.answer) for fact in known for prompt in fact.prompts()]
    with torch.no_grad():
        for prompt, answer in asked:
            logits = model(**words(prompt, return_tensors="pt")).logits[0, -1]
            right += words.decode(int(logits.argmax())) == answer
    return right / len(asked)


def save(folder: Path, seed: int, steps: int, untaught: str | None = None, *, guess: bool = False) -> dict[str, float]:
    """Train one and write it as transformers does, with its facts and how well it knows them."""
    torch.set_num_threads(1)
    began = time.process_time()
    known = facts(seed)
    words = tokenizer(known)
    model = trained(known, words, seed, steps, untaught, guess=guess)
    found: dict[str, float] = {"seed": seed, "steps": steps, "cpu_seconds": round(time.process_time() - began, 1)}
    for topic in TOPICS:
        own = [fact for fact in known if fact.topic == topic]
        for kind in ("", "expert", "novice"):
            share = recall(model, words, own, prefix(kind, topic) if kind else "")
            found[f"{topic}_{kind or 'plain'}"] = round(share, 4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    told = [{**vars(fact), "prompts": fact.prompts()} for fact in known]
    (folder / "facts.json").write_text(json.dumps(told))
    (folder / "metrics.json").write_text(json.dumps(found, indent=1))
    return found


def read(folder: Path) -> list[Fact]:
    """The facts that `save` has written."""
    told = json.loads((folder / "facts.json").read_text())
    return [Fact(one["topic"], one["subject"], one["relation"], one["answer"], tuple(one["others"])) for one in told]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    chosen = parser.parse_args()
    print(json.dumps(save(chosen.folder, chosen.seed, chosen.steps)))
