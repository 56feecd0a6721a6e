"""Promise: what the pages about families show runs as it stands there, and their examples draw their pictures."""

import importlib.util
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import running
import tiny
import tiny_families
import torch
from parity import Lab

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["mamba", "encoders-and-seq2seq", "vision"])
def test_the_blocks_of_a_page(page: str, on_families: running.Running, tmp_path: Path) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    names: dict[str, object] = {}
    blocks = re.findall(r"(?<!-->\n)```python\n(.*?)```", text, re.DOTALL)  # but what is marked as not run
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{page}_{number}.py"
        block = block.replace('"local/', '"interlace-tests/').replace("google-bert/bert-base-uncased", tiny.BERT)
        file.write_text(block)
        names |= runpy.run_path(str(file), init_globals=names)
    assert not getattr(names["model"], "dispatched", True)
    for picture in re.findall(r"\]\((.*?\.png)\)", text):
        assert (ROOT / "docs" / picture).stat().st_size < 100_000


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for variable in ("NDIF_HOST", "HF_ENDPOINT"):  # it sets them where they are missing
        monkeypatch.setenv(variable, "")
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lab(models: Lab, on_families: running.Running) -> Lab:
    """Both sides of every model here."""
    return models


def test_the_states_of_a_mamba(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = example("mamba_states", monkeypatch)
    model = lab.client(tiny_families.FACTS_MAMBA)
    by_state, by_residual, ends = shown.patched(model, True)
    local = shown.patched(lab.local(tiny_families.FACTS_MAMBA), False)
    for mine, theirs in zip(local, (by_state, by_residual, ends), strict=True):
        assert torch.equal(mine, theirs)
    assert ends[0] > 0.99 > 0.01 > ends[1]
    # From the name's last token on, the state of the last layer has it, and no other state does.
    assert (by_state[-1, 5:] > 0.99).all()
    assert (by_state[:-1] < 0.1).all()
    assert by_residual[-1, -1] > 0.99 > 0.01 > by_residual[-1, :-1].max()
    shown.draw([str(token) for token in range(12)], by_state, by_residual, "Paris", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 100_000


def test_the_patches_of_a_picture(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = example("vision_patches", monkeypatch)
    images = shown.pictures()
    labels, falls = shown.needed(lab.client(tiny_families.VIT), images, True)
    assert labels == ["circle", "square", "triangle"]
    assert falls.shape == (3, 4, 36)
    assert falls[:, -1].abs().max() < 1e-4  # the class token has it all
    assert falls[:, 0].abs().max() > 0.5
    shown.draw(images, labels, falls, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 100_000


def test_the_attention_across_an_encoder_decoder(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = example("cross_attention", monkeypatch)
    model = lab.client(tiny_families.BART)
    written, weights = shown.looked(model, shown.WORD, True)
    assert written == shown.WORD[::-1]
    letters = len(shown.WORD)
    reads = weights[1, :, :letters].argmax(dim=-1)
    assert (reads == torch.arange(letters - 1, -1, -1)).all()
    assert shown.without(model, shown.WORD, 4, True) != written
    shown.draw(shown.WORD, written, weights, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 100_000
