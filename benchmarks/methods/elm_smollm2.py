"""`elm.erase` on SmolLM2-135M-Instruct: capital cities are erased, and everyday knowledge is to stay.

    python benchmarks/methods/elm_smollm2.py [--steps 20] [--seed 0] [--json FILE]

The model is the one that `interlace models pull smollm2-135m-instruct` fetches. The sets in `elm_items.py` have 30
items each, so that an interval is about 30 points wide: this shows that the method runs on a real model and what it
does there, and no more. Thresholds, written before the run: on what is erased, the 95 % interval of the 4-way
accuracy holds chance (.25) or that of the base model with the novice prefix; on what is to stay, accuracy drops by
less than 2 points (no item of 30), and perplexity rises by less than 10 %.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import elm_items
import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoTokenizer

from interlace.methods import notebook
from interlace.methods.base import Result
from interlace.methods.elm.spec import SPECS
from interlace_state.config import Config
from interlace_workers.sources import package

sys.path.insert(0, str(Path(__file__).parent.parent))
import service

REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def questions(text: str) -> dict[str, Any]:
    """Multiple choice and cloze, from rows of `elm_items`."""
    dice = random.Random("choices")
    asked: dict[str, Any] = {"choices": [], "cloze": []}
    for row in elm_items.rows(text):
        prompt, right, *wrong = row.split("|")
        choices = [right, *wrong]
        dice.shuffle(choices)
        asked["choices"].append({"question": prompt, "choices": choices, "answer": choices.index(right)})
        asked["cloze"].append({"prompt": prompt, "answer": right})
    return asked


def params(steps: int, **changes: Any) -> dict[str, Any]:
    """The paper's losses, eta and layers; fewer and larger steps than the paper's, for one core."""
    other = elm_items.rows(elm_items.ABOUT_OTHER)
    given = {
        "concept": {
            "expert_prefixes": ["Here is a text by an expert in world geography, who knows every capital city:\n"],
            "novice_prefixes": ["Here is a text by someone who knows nothing of geography and talks of fun things:\n"],
        },
        "concept_texts": elm_items.rows(elm_items.ABOUT_CAPITALS),
        "retain_texts": other[:20],
        "eta": 500,
        "lr": 1e-3,
        "steps": steps,
        "batch": 4,
        "grad_accum": 1,
        "fluency": {
            "prompt_chars": (20, 60),
            "new_tokens": (24, 32),
            "samples": 32,
            "redirects": ["Let us talk about something more fun instead,", "I would rather speak of another thing,"],
        },
        "evaluation": {
            "erased": questions(elm_items.CAPITALS),
            "retained": questions(elm_items.OTHER),
            "retained_texts": other[20:],
            "scoring": "answers",
            "generations": 12,
            "generation_tokens": 16,
            "relearn_steps": 4,
            "probes": False,
            "batch": 16,
        },
    }
    return {**given, **changes}


def told(result: Result) -> list[dict[str, Any]]:
    return [json.loads(metric.model_dump_json()) for metric in result.metrics]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--change", default="{}", help="params that differ, as JSON")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    folder = str(dict(package.cached(Config().cache_dir))[REPO_ID])
    words = AutoTokenizer.from_pretrained(folder)
    model = TransformersModel(
        folder, task="text-generation", dispatch=True, tokenizer=words, dtype=torch.float32, device="cpu"
    )
    given = params(chosen.steps, **json.loads(chosen.change))
    began, wall = time.process_time(), time.time()
    with tempfile.TemporaryDirectory() as scratch:
        report = notebook.Notebook(scratch, seed=chosen.seed)
        result = notebook.run(SPECS[0], model, given, report)
    seconds = {"cpu": round(time.process_time() - began), "wall": round(time.time() - wall)}
    for metric in result.metrics:
        print(f"{metric.name:16} {metric.split:18} {metric.value:9.4g} n={metric.n} {metric.ci95}")
    for name in ("losses", "samples"):
        for row in result.table(name).rows[::3]:
            print(row)
    print(seconds, report.cost)
    if chosen.json:
        tables = {table.name: {"columns": table.columns, "rows": table.rows} for table in result.tables}
        kept = {"params": given, "metrics": told(result), "tables": tables, "seconds": seconds, "cost": report.cost}
        chosen.json.write_text(json.dumps({**kept, "circumstances": service.circumstances()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
