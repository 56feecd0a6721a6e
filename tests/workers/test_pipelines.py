"""Pipelines of diffusers as sources: folders and repositories with a model in each of their own folders."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_server
import pytest
import tiny_diffusion
from hub_server import COMMIT, Hub

from interlace.protocol.model import ModelKey
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import card as cards
from interlace_workers.sources import pipeline, resolving
from interlace_workers.sources.source import Source, SourceError

ASSET = tiny_diffusion.ASSET
HUB_FILES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
}
RESOLVE = """
import sys
from pathlib import Path
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import resolving
from interlace_workers.sources.source import SourceError
try:
    source = resolving.resolve(ModelConfig(source=sys.argv[1]), Path(sys.argv[2]), lambda line: None)
except SourceError as error:
    sys.exit(str(error))
print(source.repo_id, source.commit, source.path, source.is_pipeline, len(source.hub_files()), sep="|")
(cached,) = resolving.cached(Path(sys.argv[2]))
assert (cached.name, cached.path) == ("lab/Tiny", source.path)
assert cached.size_bytes > source.size_bytes, cached
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the small pipeline that a test may spoil."""
    return Path(shutil.copytree(ASSET, tmp_path / "shapes"))


def resolve(folder: Path, **settings: Any) -> Source:
    return resolving.resolve(ModelConfig(source=str(folder), **settings), folder, print)


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        resolve(folder)
    return str(caught.value)


def test_a_folder_of_a_pipeline() -> None:
    source = resolve(ASSET, repo_id=tiny_diffusion.SHAPES)
    assert source.is_pipeline
    assert resolving.is_pipeline(ModelConfig(source=str(ASSET)))
    assert set(source.hub_files()) == HUB_FILES
    assert all(path.is_relative_to(ASSET) for path in source.hub_files().values())
    weights = sorted(ASSET.rglob("*.safetensors"))
    assert len(weights) == 4  # the UNet's are in two shards
    assert source.size_bytes == sum(path.stat().st_size for path in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_its_card_counts_all_components(dtype: Any) -> None:
    source = resolve(ASSET)
    key = ModelKey(wrapper="DiffusionModel", repo_id=source.repo_id, task=None)
    card = cards.card(source, key, ModelConfig(source=str(ASSET), dtype=dtype))
    assert card.n_params == 415_307 + 2_383_976 + 106_880
    assert card.dtype == ("float32" if dtype == "auto" else dtype)
    assert card.size_bytes == card.n_params * (2 if dtype == "bfloat16" else 4)
    assert card.config["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_its_commit_changes_with_a_file_of_any_component(copy: Path, name: str) -> None:
    before = resolve(copy).commit
    assert resolve(copy).commit == before
    (copy / name).write_text((copy / name).read_text() + "\n")
    assert resolve(copy).commit != before


def test_its_commit_does_not_change_with_what_is_no_part_of_it(copy: Path) -> None:
    before = resolve(copy).commit
    (copy / "notes").mkdir()
    (copy / "notes" / "config.json").write_text("{}")
    source = resolve(copy)
    assert source.commit == before
    assert set(source.hub_files()) == HUB_FILES


@pytest.mark.parametrize("lost", ["vae", "unet/diffusion_pytorch_model-00002-of-00002.safetensors"])
def test_a_component_without_its_weights_is_named(copy: Path, lost: str) -> None:
    path = copy / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"for: {lost.split('/')[0]}." in refusal(copy)


def changed(folder: Path, **components: Any) -> None:
    index = json.loads((folder / pipeline.INDEX).read_text())
    (folder / pipeline.INDEX).write_text(json.dumps(index | components))


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/b", "", ".", ".."])
def test_a_component_leads_nowhere_else(copy: Path, name: str) -> None:
    secret = copy.parent / "secret"
    secret.mkdir()
    (secret / "config.json").write_text('{"token": 1}')
    shutil.copy(ASSET / "text_encoder" / "model.safetensors", secret)
    changed(copy, **{name: ["transformers", "CLIPTextModel"]})
    assert "is damaged" in refusal(copy)


@pytest.mark.parametrize("index", ["[]", "{", '{"unet": ["diffusers"]}', '{"unet": ["diffusers", 3]}', '"x"'])
def test_a_damaged_index_is_named(copy: Path, index: str) -> None:
    (copy / pipeline.INDEX).write_text(index)
    assert f"{pipeline.INDEX} is damaged" in refusal(copy)


def test_what_is_left_out_needs_no_folder(copy: Path) -> None:
    changed(copy, safety_checker=[None, None], image_encoder=[None, None], requires_safety_checker=True)
    assert set(resolve(copy).hub_files()) == HUB_FILES


def test_large_and_secret_files_stay(copy: Path) -> None:
    (copy / "tokenizer" / "notes.md").write_text("private")
    (copy / "unet" / "pipeline.py").write_text("")
    with (copy / "tokenizer" / "vocab.txt").open("wb") as file:
        file.truncate(65 << 20)
    assert set(resolve(copy, trust_remote_code=True).hub_files()) == HUB_FILES


# the hub


@pytest.fixture
def from_hub(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Resolves a repository in a process of its own, on a hub with these files."""

    def run(files: dict[str, bytes], repo_id: str = "lab/tiny", **environ: str) -> tuple[str, str]:
        with hub_server.running(files) as hub:
            done = subprocess.run(
                [sys.executable, "-c", RESOLVE, repo_id, str(tmp_path)],
                env={**os.environ, **hub, "HF_HOME": str(tmp_path / "hf"), **environ},
                capture_output=True,
                text=True,
                timeout=120,
            )
        return done.stdout.strip(), done.stderr.strip()

    return run


def repository(folder: Path = ASSET) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    variant = "unet/diffusion_pytorch_model.fp16.safetensors"
    others = ("README.md", "vae_decoder/model.onnx", "vae_decoder/config.json", variant, "unet/flax_model.msgpack")
    return files | dict.fromkeys(others, b"{}")


def test_the_hub_gives_what_is_needed_of_each_component(from_hub: Callable[..., tuple[str, str]]) -> None:
    out, said = from_hub(repository())
    assert out, said
    repo_id, commit, _, is_pipeline, count = out.split("|")
    assert (repo_id, commit, is_pipeline, int(count)) == ("lab/Tiny", COMMIT, "True", len(HUB_FILES))
    weights = {str(file.relative_to(ASSET)) for file in ASSET.rglob("*.safetensors*")}
    assert set(Hub.fetched) == HUB_FILES | weights
    again, said = from_hub({}, "lab/Tiny", HF_HUB_OFFLINE="1")
    assert again == out, said


def test_a_repository_that_lacks_a_components_weights(from_hub: Callable[..., tuple[str, str]]) -> None:
    files = {name: data for name, data in repository().items() if not name.startswith("vae/diffusion")}
    _, said = from_hub(files)
    assert "no weights for the component vae" in said.splitlines()[-1]
