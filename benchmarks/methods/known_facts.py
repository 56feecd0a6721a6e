"""Facts that a small real model may know, as prompts for methods."""

from typing import Any

_CAPITALS = """France Paris|Italy Rome|Japan Tokyo|Germany Berlin|Spain Madrid|Russia Moscow|China Beijing|Egypt Cairo
|Greece Athens|Austria Vienna|Poland Warsaw|Portugal Lisbon|Ireland Dublin|Sweden Stockholm|Norway Oslo|Hungary Budapest
|Cuba Havana|Iran Tehran|Thailand Bangkok|Denmark Copenhagen|Finland Helsinki|Kenya Nairobi|Peru Lima|Iraq Baghdad"""
_OTHERS = (
    ("{} is located in the city of", "The Eiffel Tower", "Paris"),
    ("{} is located in the city of", "The Colosseum", "Rome"),
    ("{} is located in the city of", "The Louvre Museum", "Paris"),
    ("{} is located in the city of", "The Brandenburg Gate", "Berlin"),
    ("{} is located in the country of", "The Great Pyramid of Giza", "Egypt"),
    ("{} is located in the country of", "The Taj Mahal", "India"),
    ("{} is located in the country of", "Mount Fuji", "Japan"),
    ("The company Microsoft was founded by {}", "Bill", "Gates"),
    ("The first president of the United States was {}", "George", "Washington"),
    ("The theory of relativity was developed by {}", "Albert", "Einstein"),
)


def prompts() -> list[dict[str, str]]:
    """For `trace.causal` and `flow.knockout`."""
    found = [
        {"text": f"The capital of {one} is the city of", "subject": one, "answer": city} for one, city in capitals()
    ]
    return found + [{"text": text.replace("{}", one), "subject": one, "answer": said} for text, one, said in _OTHERS]


def capitals() -> list[tuple[str, str]]:
    return [tuple(one.split()) for one in _CAPITALS.replace("\n", "").split("|")]  # type: ignore[misc]


def requests(number: int) -> list[dict[str, Any]]:
    """For `edit.rome`: countries with another capital; neighbours are other countries' own."""
    every = capitals()
    found = []
    for at, (country, city) in enumerate(every[:number]):
        others = [every[(at + step) % len(every)] for step in (3, 5, 7, 9)]
        found.append(
            {
                "prompt": "The capital of {} is the city of",
                "subject": country,
                "target_new": every[(at + 4) % len(every)][1],
                "target_true": city,
                "paraphrases": [
                    "The seat of the government of {} is in the city of",
                    "The capital city of {} is called",
                ],
                "neighbours": [
                    {"prompt": f"The capital of {one} is the city of", "answer": its} for one, its in others
                ],
                "other_relations": [{"prompt": f"{country} is a country on the continent of", "answer": "Europe"}],
            }
        )
    return found


UNRELATED = [
    {"prompt": "The opposite of hot is", "answer": "cold"},
    {"prompt": "The chemical symbol for gold is", "answer": "Au"},
    {"prompt": "The largest planet in the solar system is", "answer": "Jupiter"},
    {"prompt": "Two plus two equals", "answer": "four"},
    {"prompt": "The Eiffel Tower is located in the city of", "answer": "Paris"},
    {"prompt": "The theory of relativity was developed by Albert", "answer": "Einstein"},
    {"prompt": "The play Romeo and Juliet was written by William", "answer": "Shakespeare"},
    {"prompt": "The company Microsoft was founded by Bill", "answer": "Gates"},
]
