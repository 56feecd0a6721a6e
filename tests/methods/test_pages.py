"""What the pages of docs/methods show runs as it stands there, block by block, on a small model that knows facts.

A page's names that are the reader's own (`texts`, `labels`) and what must be shorter here are in PAGES. A block that
cannot run here has the line `<!-- not run: WHY -->` before it. README.md is in test_docs.
"""

import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nnsight
import pytest
import running
from gateway_keys import key_for
from nnsight import TransformersModel
from nnsight.modeling import huggingface
from small_models import FACTS_GPT

import interlace

PAGES = Path(__file__).parents[2] / "docs" / "methods"
MODEL = str(FACTS_GPT)
#: As it is hosted.
HOSTED = "local/facts-gpt-mini"
_BLOCK = re.compile(r"(<!-- not run: [^>]+-->\n+)?```python\n(.*?)```", re.DOTALL)
_KNOWN = json.loads((FACTS_GPT / "facts.json").read_text())


def _of(relation: str, n: int) -> list[str]:
    return [f"{one['train'][0]} {one['object']}." for one in _KNOWN if one["relation"] == relation][:n]


#: By page: what is put in place of what is there, and the names that a reader brings.
Page = tuple[dict[str, str], Callable[[], dict[str, Any]]]
_SAE = '"layer": 3, "steps": 12, "batch": 16, "buffer": 64, "d_sae": 32, "lr_warmup": 2, "sparsity_warmup": 3, '
#: The published prefixes leave a context of 64 few tokens.
_ELM = (
    '"max_chars": 24, "lora": {"layers": [1, 2]}, "steps": 2, "batch": 2, "grad_accum": 1, '
    '"fluency": {"redirects": ["And"], "prompt_chars": [5, 12], "new_tokens": [4, 6]}, '
)
_MEASURED = '"evaluation": {"scoring": "answers", "generations": 2, "generation_tokens": 4, '
_ASKED = [{"question": "The capital of France is", "choices": ["Paris", "Tokyo"], "answer": 0}] * 5
_HELD = [{"question": "The capital of Japan is", "choices": ["Paris", "Tokyo"], "answer": 1}] * 5
RUN: dict[str, Page] = {
    "edits.md": ({"1536": "512", "576": "128", '"llama"': '"gpt2"'}, dict),
    "elm.md": (
        {
            '"concept_texts"': _ELM + '"concept_texts"',
            '"evaluation": {': _MEASURED,
            'from_pretrained("org/model")': f'from_pretrained("{MODEL}")',
            'TransformersModel("org/model"': f'TransformersModel("{MODEL}"',
        },
        lambda: {
            "texts_on_the_concept": _of("job", 4),
            "texts_on_other_things": _of("capital", 4),
            "questions": _ASKED,
            "held_back": _HELD,
            "other_held_back": _HELD,
            "other_questions": _ASKED,
            "beginnings": [{"prompt": "The capital of France is", "answer": "Paris"}],
        },
    ),
    "flow.md": ({}, dict),
    "mediate.md": ({}, dict),
    "patch.md": ({}, dict),
    "paths.md": ({}, dict),
    "probing.md": (
        {"[1, 9]": "[1, 3]", '"layer_end": 9': '"layer_end": 3', '"epochs": 16': '"epochs": 2'},
        lambda: {
            "texts": _of("job", 8) + _of("capital", 8),
            "labels": ["job"] * 8 + ["capital"] * 8,
            "documents": _of("sport", 3),
        },
    ),
    "relation.md": (
        {", ...]": "] + more", '"n_train": 8': '"n_train": 3', "[1, 2.25, 5]": "[1]"},
        lambda: {
            "more": [
                {"subject": one["subject"], "object": one["object"]}
                for one in _KNOWN
                if one["relation"] == "capital" and one["subject"] not in ("France", "Japan")
            ][:6]
        },
    ),
    "rome.md": ({}, dict),
    "sae.md": (
        {'"layer": 5, ': _SAE, '"weight": 0.04': '"weight": 0.04, "anneal_start": 2'},
        lambda: {"texts": _of("job", 8), "other_texts": _of("capital", 8)},
    ),
    "steering.md": (
        {},
        lambda: {
            "texts_of_asia": ["The continent of China is", "The continent of Japan is"],
            "texts_of_europe": ["The continent of France is", "The continent of Italy is"],
            "texts_on_other_things": _of("job", 4),
        },
    ),
    "tracing.md": ({}, dict),
}


def _blocks(page: Path) -> list[str]:
    """The blocks that are to run."""
    return [code for mark, code in _BLOCK.findall(page.read_text()) if not mark]


@pytest.fixture(scope="module")
def facts_server(home: Path) -> Iterator[running.Running]:
    huggingface._ID_CACHE[MODEL] = HOSTED
    models = [{"source": MODEL, "task": "text-generation", "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=300) as server:
        yield server


@pytest.mark.parametrize(
    "page",
    [one for one in sorted(PAGES.glob("*.md")) if one.name != "README.md" and _blocks(one)],
    ids=lambda one: one.stem,
)
def test_a_page_runs(
    page: Path, facts_server: running.Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page.name in RUN, f"say in RUN what {page.name} needs, or mark its blocks with <!-- not run: WHY -->"
    key = key_for(facts_server, "reader")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NDIF_API_KEY", key)
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", facts_server.url)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", key)
    instead, brings = RUN[page.name]
    names: dict[str, Any] = {"model": TransformersModel(MODEL, task="text-generation", dispatch=True), **brings()}
    names["model"]._module.eval()
    for number, block in enumerate(_blocks(page)):
        code = block.replace("http://127.0.0.1:8000", facts_server.url)
        local = {'TransformersModel("HuggingFaceTB/SmolLM2-135M-Instruct"': f'TransformersModel("{MODEL}"'}
        hosted = dict.fromkeys(("HuggingFaceTB/SmolLM2-135M-Instruct", "org/model"), HOSTED)
        for old, new in {**instead, **local, **hosted}.items():
            code = code.replace(old, new)
        file = tmp_path / f"{page.stem}_{number}.py"
        file.write_text(code)
        names |= runpy.run_path(str(file), init_globals=names)
    client = names.get("client")
    assert isinstance(client, interlace.Client)
    client.close()
    assert any(name in names for name in ("result", "edited"))
