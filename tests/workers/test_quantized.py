"""Weights of 8 and 4 bits: planned as they are held, moved whole, and never taken for what they are not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.settings.models import ModelConfig
from interlace_workers import spawn
from interlace_workers.child.loading import model as models
from interlace_workers.child.merging import sharing
from interlace_workers.order import Load
from interlace_workers.placement.feasible import against
from interlace_workers.sources import card as cards
from interlace_workers.sources import quantized, resolving
from interlace_workers.weights import into_huge_pages


def folder_of(hub: Path, repo_id: str) -> Path:
    (path,) = (hub / f"models--{repo_id.replace('/', '--')}" / "snapshots").iterdir()
    return path


@pytest.mark.parametrize("repo_id", [tiny.LLAMA, tiny.GPT2])
@pytest.mark.parametrize("how", ["int8", "nf4", "fp4"])
def test_it_takes_what_is_planned_and_moves_whole(families: Path, repo_id: str, how: Any) -> None:
    folder = folder_of(families, repo_id)
    order = Load(str(folder), "text-generation", how, trust_remote_code=False, threads=1)
    hosted, other = models.load(order), models.load(order)
    key, config = ModelKey(repo_id=repo_id), ModelConfig(source=str(folder), quantization=how)
    card = cards.card(resolving.resolve(config, folder, lambda _: None), key, config)
    assert card.size_bytes is not None
    assert card.n_params is not None
    assert abs(hosted.size_bytes / card.size_bytes - 1) < 0.1
    assert abs(hosted.n_params / card.n_params - 1) < 0.01  # not what four bits pack them into
    assert (sharing.why_alone(hosted) is not None) == (how == "int8")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert into_huge_pages(hosted.model._module) >= hosted.size_bytes
        assert torch.equal(hosted.model._module(tokens).logits, other.model._module(tokens).logits)
    # What a forward without gradients leaves behind takes them from no other.
    embedded = hosted.model._module.get_input_embeddings()(tokens).detach().requires_grad_()
    hosted.model._module(inputs_embeds=embedded).logits.float().square().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0


def test_a_gradient_passes_through_attention_whose_output_stands_out(families: Path) -> None:
    order = Load(str(folder_of(families, tiny.LLAMA)), "text-generation", "int8", trust_remote_code=False, threads=1)
    model = models.load(order).model._module
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight *= 100  # values, and so what attention gives: far from the rest
    attended = []
    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[0]))
    embedded = model.get_input_embeddings()(torch.arange(9)[None]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    assert attended[0].abs().max() > 6  # over which `int8` computes in 16 bits
    logits.float().square().sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.isfinite().all()
    assert embedded.grad.abs().sum() > 0


def test_only_matrices_of_layers_are_packed() -> None:
    shapes = [
        ("embed.weight", (100, 64)),
        ("wpe.weight", (32, 64)),
        ("layers.0.up.weight", (64, 64)),
        ("layers.0.up.bias", (64,)),
        ("layers.0.experts.up", (2, 64, 64)),
    ]
    config = {"text_config": {"vocab_size": 100}, "max_position_embeddings": 64}
    rest = 2 * (100 * 64 + 32 * 64 + 64 + 2 * 64 * 64)
    assert quantized.size_bytes(shapes, config, "int8") == rest + 64 * 64
    assert quantized.size_bytes(shapes, config, "nf4") == rest + 64 * 64 // 2 + 64 * 64 // 64 * 4


def test_what_transformers_loads_in_another_way_is_no_success(families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline falls back to float32 where it fails; with a type of torch's in the place of ours it does."""
    monkeypatch.setattr(models, "TransformersModel", lambda *_, dtype, **more: _loaded(*_, **more))
    order = Load(str(folder_of(families, tiny.LLAMA)), "text-generation", "int8", trust_remote_code=False, threads=1)
    with pytest.raises(ValueError, match="has not loaded it as int8"):
        models.load(order)


def _loaded(path: str, **more: Any) -> Any:
    from nnsight import TransformersModel

    return TransformersModel(path, dtype=torch.float32, **more)


@pytest.mark.parametrize(
    ("settings", "checkpoint", "said"),
    [
        ({"quantization": "fp8"}, {}, "`quantization: fp8` needs a GPU of compute capability 8.9"),
        ({"quantization": "nf4"}, {"_diffusers_version": "0.42"}, "this is a pipeline of diffusers"),
        ({"quantization": "nf4"}, {"quantization_config": {"quant_method": "gptq"}}, "is quantized already"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, "a form whose kernels need a GPU"),
    ],
)
def test_what_cannot_be_held_so_is_refused(settings: Any, checkpoint: dict[str, Any], said: str) -> None:
    reason = against(ModelConfig(source="a", **settings), checkpoint, Config())
    assert reason is not None
    assert said in reason


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(source="a", quantization="nf4")
    assert against(model, {}, Config()) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'interlace[quantized]'" in str(against(model, {}, Config()))


def test_only_a_model_that_asks_for_it_imports_bitsandbytes() -> None:
    """PEFT would, in every model's process, where it finds it, and diffusers in every pipeline's."""
    start = spawn.BEFORE
    program = f"""{start}
from interlace_workers import zygote
from interlace_workers.child.loading import quantized
from interlace_workers.order import Load
from peft import import_utils
for dtype, is_pipeline in (("float32", True), ("nf4", False)):
    quantized.enable(Load("", None, dtype, trust_remote_code=False, threads=1, is_pipeline=is_pipeline))
    from diffusers import StableDiffusionPipeline
    print("bitsandbytes" in sys.modules, import_utils.is_bnb_available())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.split() == ["False", "False", "False", "True"]
