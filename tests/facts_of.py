"""What the small models of facts know, as prompts for methods."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "assets" / "facts-mamba-mini" / "facts.json"


def every() -> list[dict[str, Any]]:
    """596 facts: relation, subject, object, and templates `train` (4), `heldout` (2) and `unseen` (2), filled in."""
    return json.loads(FILE.read_text())


def corpus() -> list[str]:
    """The sentences that the models were trained on, for covariances."""
    return [f"{prompt} {fact['object']}." for fact in every() for prompt in fact["train"]]


def requests(relation: str, number: int, start: int = 0) -> list[dict[str, Any]]:
    """Facts of a relation to change, each into the object of the one that is 7 facts on, with all that judges them."""
    facts = every()
    same = [fact for fact in facts if fact["relation"] == relation]
    found = []
    for at, fact in enumerate(same[start : start + number], start):
        new = next(
            other["object"]
            for other in (same[(at + 7 + step) % len(same)] for step in range(len(same)))
            if other["object"] != fact["object"]
        )
        subject = fact["subject"]
        wordings = [text.replace(subject, "{}") for text in fact["train"] if subject in text]
        found.append(
            {
                "prompt": wordings[0],
                "subject": subject,
                "target_new": new,
                "target_true": fact["object"],
                "contexts": wordings[1:],
                "paraphrases": [text.replace(subject, "{}") for text in fact["heldout"] if subject in text],
                "neighbours": [
                    {"prompt": other["train"][0], "answer": other["object"]}
                    for other in same
                    if other["object"] == fact["object"] and other["subject"] != subject
                ],
                "other_relations": [
                    {"prompt": other["train"][0], "answer": other["object"]}
                    for other in facts
                    if other["subject"] == subject and other["relation"] != relation
                ],
            }
        )
    return found


def unrelated(relations: Sequence[str], number: int) -> list[dict[str, str]]:
    """Facts of other relations."""
    some = [fact for fact in every() if fact["relation"] in relations]
    return [{"prompt": fact["train"][0], "answer": fact["object"]} for fact in some[:number]]
