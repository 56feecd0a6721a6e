"""LoRAs of a diffusion pipeline: loaded from bytes in memory, as diffusers loads them from a folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from nnsight.modeling.diffusion import DiffusionModel
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from interlace.methods.shared.denoising import lora as layers_of
from interlace.methods.shared.files import laid_out, opened
from interlace.protocol.artifact import AdapterRef, Wanted, wanted
from interlace.protocol.errors import AdapterRefused, InvalidRequest
from interlace_workers.child import environment, lora
from interlace_workers.child.loading.model import HostedModel
from interlace_workers.order import Order
from interlace_workers.replicas.adapters import seal

WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]
FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion that could hardly be smaller, with random weights."""
    path = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **shape,
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    heads = {"num_attention_heads": 2, "num_hidden_layers": 1}
    text = CLIPTextConfig(
        vocab_size=len(WORDS), max_position_embeddings=8, hidden_size=16, intermediate_size=16, eos_token_id=1, **heads
    )
    StableDiffusionPipeline(
        unet=unet,
        vae=AutoencoderKL(latent_channels=4, **shape, **blocks),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(
            vocab={word: number for number, word in enumerate(WORDS)}, merges=[], model_max_length=8
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    return path


@pytest.fixture
def model(folder: Path) -> DiffusionModel:
    model = DiffusionModel(str(folder), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def made(pipeline: Any, target: Path, seed: int, alpha: int = 12) -> bytes:
    """A LoRA of rank 4 of unet and text encoder, as `save_lora_weights` writes it; its scale is in the metadata."""
    torch.manual_seed(seed)
    layers, metadata = {}, {}
    for name, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj"])):
        config = LoraConfig(r=4, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        getattr(pipeline, name).add_adapter(config)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(getattr(pipeline, name))
        metadata[f"{name}_lora_adapter_metadata"] = config.to_dict()
    pipeline.save_lora_weights(target, **layers, **metadata)
    return (target / FILE).read_bytes()


def draw(model: Any) -> torch.Tensor:
    with model.generate("a b", seed=3, num_inference_steps=2, height=16, width=16, output_type="latent"):
        latents = model.output.images.save()
    return latents.detach()


def hosted(model: Any) -> HostedModel:
    return HostedModel(
        model, model._remoteable_persistent_objects(), threads=1, n_params=0, size_bytes=0, is_pipeline=True
    )


def prepare(model: Any, loras: Mapping[str, tuple[bytes, float]]) -> HostedModel:
    """What a child does with a job that names these."""
    env = {"lora": [{"adapter": name, "weight": weight} for name, (_, weight) in loras.items()]}
    sealed = [seal(one, b"", loras[one.ref.text][0]) for one in wanted(env)]
    order = Order(compress=False, env=env, adapters=tuple(one.adapter for one in sealed))
    return environment.prepare(hosted(model), order, [os.dup(one.file.fileno()) for one in sealed])


def local(folder: Path) -> Any:
    model = DiffusionModel(str(folder), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def test_it_draws_what_diffusers_draws(folder: Path, model: Any, tmp_path: Path) -> None:
    files = {f"lab/{seed}": made(local(folder).pipeline, tmp_path / str(seed), seed) for seed in (1, 2)}
    expected = local(folder)
    for seed in (1, 2):
        expected.pipeline.load_lora_weights(tmp_path / str(seed), adapter_name=f"a{seed}")
    expected.pipeline.set_adapters(["a1", "a2"], [0.5, -1.5])
    expected._update(expected._module)
    bare = draw(model)
    prepared = prepare(model, {"lab/1": (files["lab/1"], 0.5), "lab/2": (files["lab/2"], -1.5)})
    found = draw(model)
    torch.testing.assert_close(found, draw(expected), rtol=0, atol=0)
    assert not torch.allclose(found, bare, atol=1e-3)
    # What a payload may refer to has the new modules.
    paths = [path for path in prepared.persistent if ".lora_A.lora_0" in path and path.startswith("Module:")]
    assert paths
    assert all(prepared.persistent[path] in set(model._module.modules()) for path in paths)


def test_without_one_it_is_as_it_was(folder: Path, model: Any) -> None:
    bare = hosted(model)
    assert environment.prepare(bare, Order(compress=False, env={}), []) is bare
    torch.testing.assert_close(draw(model), draw(local(folder)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda one: one | {"unet.mid_block.nowhere.lora_A.weight": torch.zeros(4, 16)}, "without a place"),
        (lambda one: one | {"vae.encoder.conv.lora_A.weight": torch.zeros(4, 16)}, "without a place"),
        (lambda one: dict(list(one.items())[1:]), "l.*this pipeline"),
        (lambda one: {key: value[:, :-1].contiguous() for key, value in one.items()}, "does not fit this pipeline"),
        (lambda one: {f"transformer.{key}": value for key, value in one.items()}, "this pipeline"),
    ],
    ids=[
        "no such layer",
        "a strange component",
        "half of a pair",
        "another shape",
        "another model",
    ],
)
def test_one_that_does_not_fit_is_refused(folder: Path, model: Any, tmp_path: Path, change: Any, sentence: str) -> None:
    tensors = safetensors.torch.load(made(local(folder).pipeline, tmp_path, 1))
    data = safetensors.torch.save(change(tensors))
    with pytest.raises(AdapterRefused, match=sentence):
        prepare(model, {"lab/1": (data, 1.0)})


def test_metadata_that_is_no_json(folder: Path, model: Any, tmp_path: Path) -> None:
    tensors = safetensors.torch.load(made(local(folder).pipeline, tmp_path, 1))
    data = safetensors.torch.save(tensors, {"lora_adapter_metadata": "[" * 100_000})
    with pytest.raises(AdapterRefused, match="is no JSON object"):
        prepare(model, {"lab/1": (data, 1.0)})


def test_peft_files_draw_as_diffusers_files(folder: Path, model: Any, tmp_path: Path) -> None:
    """One LoRA in both layouts: the same numbers there and back, the same pictures."""
    pipeline = local(folder).pipeline
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    layers = get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict())
    data = (tmp_path / FILE).read_bytes()
    known = opened("diffusers-lora", {FILE: data}, "")
    tensors, said = layers_of.as_peft(known.tensors, known.config)
    back, metadata = layers_of.as_diffusers(tensors, said)
    assert back.keys() == known.tensors.keys()
    assert all(torch.equal(back[key], one) for key, one in known.tensors.items())
    assert metadata[layers_of.METADATA] == known.config[layers_of.METADATA] | {"unet.inference_mode": True}
    again, _ = layers_of.as_peft(back, metadata)
    assert all(torch.equal(again[key], one) for key, one in tensors.items())
    bare = draw(model)
    prepare(model, {"lab/1": (data, 0.5)})
    expected = draw(model)
    lora.unload(model)
    torch.testing.assert_close(draw(model), bare, rtol=0, atol=0)
    files = laid_out("peft", tensors, said)
    config_bytes, weights = files["adapter_config.json"], files["adapter_model.safetensors"]
    sealed = seal(Wanted(AdapterRef("lab/1", "hub"), "peft", 0.5), config_bytes, weights)
    order = Order(compress=False, adapters=(sealed.adapter,))
    environment.prepare(hosted(model), order, [os.dup(sealed.file.fileno())])
    torch.testing.assert_close(draw(model), expected, rtol=0, atol=0)
    assert not torch.equal(expected, bare)
    assert peft_loads(tmp_path / "peft", files, local(folder).pipeline.unet)


def peft_loads(target: Path, files: Mapping[str, bytes], module: Any) -> bool:
    """Whether PEFT itself takes the files, key for key."""
    target.mkdir()
    for name, data in files.items():
        (target / name).write_bytes(data)
    model = PeftModel.from_pretrained(module, str(target))
    there = get_peft_model_state_dict(model)
    return all(torch.equal(there[key], one) for key, one in safetensors.torch.load_file(target / PEFT_FILE).items())


def seen(model: Any, loras: Mapping[str, tuple[bytes, Any]]) -> list[tuple[float, torch.Tensor]]:
    """(t, what the denoiser gave) of each step of a run with these LoRAs."""
    env = {"lora": [{"adapter": name, **said} for name, (_, said) in loras.items()]}
    sealed = [seal(one, b"", loras[one.ref.text][0]) for one in wanted(env)]
    order = Order(compress=False, env=env, adapters=tuple(one.adapter for one in sealed))
    environment.prepare(hosted(model), order, [os.dup(one.file.fileno()) for one in sealed])
    how = {"seed": 3, "num_inference_steps": 4, "height": 16, "width": 16, "output_type": "latent"}
    found = []
    with model.generate("a b", **how) as tracer:
        steps = [].save()
        for _ in tracer.iter[:4]:
            steps.append((model.unet.inputs[0][1], model.unet.output[0].detach()))
    for t, noise in steps:
        found.append((float(t), noise))
    lora.unload(model)
    return found


def test_a_schedule_in_t(folder: Path, model: Any, tmp_path: Path) -> None:
    """Until its time has come a LoRA leaves no trace, to the bit; from then on it is the whole of it."""
    data = made(local(folder).pipeline, tmp_path, 1)
    tensors = {key: one for key, one in safetensors.torch.load(data).items() if key.startswith("unet.")}
    data = safetensors.torch.save(tensors)
    bare = seen(model, {})
    late = seen(model, {"lab/1": (data, {"weight": 2.0, "t_max": 500})})
    for (t, noise), (_, plain) in zip(late, bare, strict=True):
        if t > 500:
            assert torch.equal(noise, plain), t
        else:
            assert not torch.allclose(noise, plain, atol=1e-3), t
    assert {t > 500 for t, _ in late} == {True, False}
    never = seen(model, {"lab/1": (data, {"weight": 2.0, "t_min": 5000})})
    always = seen(model, {"lab/1": (data, {"weight": 2.0, "t_min": 0})})
    for (_, plain), (_, off), (_, on) in zip(bare, never, always, strict=True):
        assert torch.equal(plain, off)
        assert not torch.allclose(plain, on, atol=1e-3)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(bare, seen(model, {}), strict=True))


def test_one_that_was_made_for_other_weights_is_refused(folder: Path, model: Any, tmp_path: Path) -> None:
    tensors = safetensors.torch.load(made(local(folder).pipeline, tmp_path, 1))
    here = layers_of.digest(model.pipeline.unet)
    for base in (here, "0" * 64):
        said = {layers_of.OURS: json.dumps({"base_sha256": base})}
        data = safetensors.torch.save(tensors, said)
        if base == here:
            prepare(model, {"lab/1": (data, 1.0)})
            assert layers_of.digest(model.pipeline.unet) == here  # its layers are no part of it
            lora.unload(model)
        else:
            with pytest.raises(AdapterRefused, match=r"made for a denoiser whose weights .* 0000000000000000\.\.\."):
                prepare(model, {"lab/1": (data, 1.0)})
    with torch.no_grad():
        model.pipeline.unet.conv_in.bias[0] += 1e-3
    assert layers_of.digest(model.pipeline.unet) != here


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"adapter": "lab/1", "t_max": "late"}, r"`env.lora\[0\].t_max` is late"),
        ({"adapter": "lab/1", "t_min": -1}, r"`env.lora\[0\].t_min` is -1"),
        ({"adapter": "lab/1", "t": 3}, "of which all but the first may be left out"),
        ({"adapter": "lab/1", "weight": True}, r"`env.lora\[0\].weight` is True"),
    ],
)
def test_what_an_entry_may_say(entry: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        wanted({"lora": [entry]})
