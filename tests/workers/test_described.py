"""What is planned for a checkpoint is what nnsight's own description of it says, buffers aside."""

import json
from pathlib import Path

import pytest
import tiny
import tiny_diffusion
import tiny_families
import torch
from nnsight.modeling.mixins.remotable import Remotable
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import interlace
from interlace.protocol.model import ModelKey
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import card as cards
from interlace_workers.sources import described, resolving

_BUFFERS = 1024  # bytes of the largest that a tiny model has: BERT's position ids


def size_of(folder: Path, key: ModelKey, dtype: str) -> int:
    path, _, suffix = key.canonical.partition(":")
    fields = json.loads(suffix) | {"repo_id": str(folder), "revision": None}
    info = Remotable.describe_checkpoint(f"{path}:{json.dumps(fields)}", dtype)
    assert info.size_bytes is not None
    return int(info.size_bytes)


def planned(folder: Path, key: ModelKey, dtype: str) -> int:
    model = ModelConfig(source=str(folder), dtype=dtype)  # type: ignore[arg-type]
    size = cards.card(resolving.resolve(model, folder, lambda _: None), key, model).size_bytes
    assert size is not None
    return size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_what_nnsight_says_of_each_family(families: Path, dtype: str) -> None:
    interlace.add_tasks()
    for name in (tiny.GPT2, tiny.LLAMA, tiny.NEOX, tiny.BERT, *tiny_families.ALL):
        (folder,) = (families / f"models--{name.replace('/', '--')}" / "snapshots").iterdir()
        key = ModelKey(repo_id=name, task=tiny.task_of(name))
        ours, theirs = planned(folder, key, dtype), size_of(folder, key, dtype)
        assert 0 <= theirs - ours <= _BUFFERS, name


def test_it_is_what_nnsight_says_of_pipelines(tmp_path: Path) -> None:
    for name, folder in tiny_diffusion.write_all(tmp_path).items():
        key = ModelKey(wrapper="DiffusionModel", repo_id=name, task=None)
        assert 0 <= size_of(folder, key, "float32") - planned(folder, key, "float32") <= _BUFFERS, name


def test_files_without_headers_are_counted_by_nnsight(tmp_path: Path) -> None:
    """What the file is stored in is not said by its config, so that its size says nothing of the weights."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=300, n_positions=64))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    torch.save({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in config if "dtype" not in name}))
    key = ModelKey(repo_id="lab/bin", task="text-generation")
    assert planned(tmp_path, key, "float32") == 4 * model.num_parameters()
    (tmp_path / "config.json").write_text("{}")
    assert described.n_params(tmp_path, key) is None
