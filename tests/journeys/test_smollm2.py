"""Promise: a real pretrained model, out of a package, thinks of Paris remotely as it does locally."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import running
import subprocess_client
import torch
from nnsight import CONFIG, TransformersModel
from nnsight.modeling import huggingface
from parity import Case, assert_same

from interlace_state.config import Config
from interlace_workers.sources import package

REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is in the city of"

#: The first start fetches and converts the model.
pytestmark = pytest.mark.timeout(900)


class Sides(NamedTuple):
    client: Any
    local: Any


@pytest.fixture(scope="module")
def smollm2(home: Path) -> Iterator[Sides]:
    """The hosted model, without its weights and with them."""
    configuration = {"runtime": "process", "models": [{"source": "smollm2-135m-instruct", "threads": 1}]}
    with running.interlace(home, configuration, seconds=800) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CONFIG.API, "HOST", server.url)
        patch.setitem(huggingface._ID_CACHE, REPO_ID, REPO_ID)
        _into_cache(home / "hf" / "hub", dict(package.cached(Config().cache_dir))[REPO_ID])
        options = {"task": "text-generation", "dtype": torch.float32}
        yield Sides(TransformersModel(REPO_ID, **options), TransformersModel(REPO_ID, dispatch=True, **options))


def _into_cache(hub: Path, folder: Path) -> None:
    repo = hub / f"models--{REPO_ID.replace('/', '--')}"
    for name in ("refs", "snapshots"):
        (repo / name).mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).symlink_to(folder)


def compared(case: Case, sides: Sides) -> dict[str, Any]:
    """What the case saves remotely; the same as locally."""
    remote = dict(case(sides.client, True))
    assert_same(dict(case(sides.local, False)), remote)
    return remote


def test_paris(smollm2: Sides) -> None:
    def case(model: Any, remote: Any) -> dict[str, Any]:
        with model.trace(PROMPT, remote=remote):
            middle = model.model.layers[15].output[0, -1].detach().save()
            logits = model.lm_head.output[0, -1].detach().save()
        return {"middle": middle, "logits": logits}

    logits = compared(case, smollm2)["logits"]
    assert smollm2.client.tokenizer.decode(logits.argmax()) == " Paris"


def test_a_logit_lens(smollm2: Sides) -> None:
    def case(model: Any, remote: Any) -> dict[str, Any]:
        with model.trace(PROMPT, remote=remote):
            best = [].save()
            for layer in model.model.layers:
                best.append(model.lm_head(model.model.norm(layer.output))[0, -1].argmax())
        return {"best": best}

    best = compared(case, smollm2)["best"]
    assert len(best) == 30
    assert smollm2.client.tokenizer.decode(best[-1]) == " Paris"


def test_a_patch_changes_the_answer(smollm2: Sides) -> None:
    def case(model: Any, remote: Any) -> dict[str, Any]:
        with model.session(remote=remote):
            with model.trace(OTHER):
                rome = model.model.layers[10].output[:, -7]
                before = model.lm_head.output[0, -1].argmax().save()
            with model.trace(PROMPT):
                model.model.layers[10].output[:, -7] = rome
                patched = model.lm_head.output[0, -1].argmax().save()
        return {"before": before, "patched": patched}

    found = compared(case, smollm2)
    assert smollm2.client.tokenizer.decode(found["patched"]) != " Paris"
    assert found["patched"] == found["before"]


def test_it_talks(smollm2: Sides) -> None:
    def case(model: Any, remote: Any) -> dict[str, Any]:
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        with model.generate(prompt, remote=remote, max_new_tokens=12, do_sample=False) as tracer:
            ids = tracer.result.save()
        return {"ids": ids}

    assert "Paris" in smollm2.client.tokenizer.decode(compared(case, smollm2)["ids"][0])


def test_the_readme_s_example_does_what_it_says(smollm2: Sides, tmp_path: Path) -> None:
    readme = Path(__file__).parents[2] / "README.md"
    trace, method = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(trace.replace("http://127.0.0.1:8000", CONFIG.API.HOST))
    said = subprocess_client.run(CONFIG.API.HOST, script).splitlines()[-1]
    assert said.split() == trace.rpartition("# ")[2].partition(", no longer")[0].split()
    script.write_text(method.replace("http://127.0.0.1:8000", CONFIG.API.HOST) + "print(result.metrics)\n")
    assert "Metric(" in subprocess_client.run(CONFIG.API.HOST, script, environ={"MPLBACKEND": "agg"})
