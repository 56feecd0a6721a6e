"""Pairs of prompts for mediation: of the planted model, and of the models that know facts."""

import random

from small_models import FACTS_GPT, facts


def of_values(n: int, agree: float, seed: int) -> list[dict[str, str]]:
    """Values that differ between base and source, each with a clue that is the same number so often."""
    dice = random.Random(seed)
    found = []
    for _ in range(n):
        base, source = dice.sample(range(4), 2)
        prompts = []
        for value in (base, source):
            clue = value if dice.random() < agree else dice.randrange(4)
            prompts.append(f"value{value} clue{clue} is")
        answers = {"answer": f"answer{base}", "source_answer": f"answer{source}"}
        found.append({"base": prompts[0], "source": prompts[1], **answers})
    return found


def countries(n: int) -> list[dict[str, str]]:
    """Of one number of tokens, to both models: they have one tokenizer."""
    asia, europe = ["China", "India", "Japan"], ["France", "Spain", "Germany"]
    tokenizer = facts(FACTS_GPT).tokenizer
    found = []
    for one in asia:
        for other in europe:
            prompts = [f"{name} is located on the continent of" for name in (one, other)]
            if len({len(tokenizer(prompt).input_ids) for prompt in prompts}) == 1:
                found.append({"base": prompts[0], "source": prompts[1], "answer": "Asia", "source_answer": "Europe"})
    length = len(tokenizer(found[0]["base"]).input_ids)
    return [one for one in found if len(tokenizer(one["base"]).input_ids) == length][:n]
