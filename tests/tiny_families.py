"""Tiny models of the families beside plain language models: seeded random weights, nothing downloaded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from PIL import Image
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

MAMBA = "interlace-tests/mamba-tiny"
MAMBA2 = "interlace-tests/mamba2-tiny"
JAMBA = "interlace-tests/jamba-tiny"
BAMBA = "interlace-tests/bamba-tiny"
T5 = "interlace-tests/t5-tiny"
LLAVA = "interlace-tests/llava-tiny"
#: Trained; the folders of `assets` say on what.
FACTS_MAMBA = "interlace-tests/facts-mamba-mini"
BART = "interlace-tests/reversal-bart-mini"
VIT = "interlace-tests/shapes-vit-mini"

TRAINED = (FACTS_MAMBA, BART, VIT)
ALL = (MAMBA, MAMBA2, JAMBA, BAMBA, T5, LLAVA, *TRAINED)
ASSETS = Path(__file__).parent / "assets"
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}\n{% endfor %}"
)

tiny.TASKS |= {
    BART: "fill-mask",
    T5: "text-to-text",
    VIT: "image-classification",
    LLAVA: "image-text-to-text",
}


def picture(seed: int = 0) -> Image.Image:
    """Noise, neither square nor of the model's own size."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8))


def write(hub: Path) -> None:
    """Write every one of them under ``hub`` (``$HF_HOME/hub``), as huggingface_hub would have."""
    builders: dict[str, Callable[[], PreTrainedModel]] = {
        MAMBA: _mamba,
        MAMBA2: _mamba2,
        JAMBA: _jamba,
        BAMBA: _bamba,
        T5: _t5,
        LLAVA: _llava,
    }
    for seed, (repo_id, build) in enumerate(builders.items(), start=100):
        scratch = hub / "scratch"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            build().eval().save_pretrained(scratch)
        _PREPROCESSORS.get(repo_id, _text)(scratch)
        tiny.cache(hub, repo_id, scratch)
        shutil.rmtree(scratch)
    for repo_id in TRAINED:
        tiny.cache(hub, repo_id, ASSETS / repo_id.partition("/")[2])


def _text(folder: Path) -> None:
    tiny.tokenizer(is_encoder=False).save_pretrained(folder)


def _masked(folder: Path) -> None:
    tiny.tokenizer(is_encoder=True).save_pretrained(folder)


def _images_and_text(folder: Path) -> None:
    text = tiny.tokenizer(is_encoder=False)
    text.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images,
        text,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    processor.save_pretrained(folder)


_PREPROCESSORS: dict[str, Callable[[Path], None]] = {T5: _masked, LLAVA: _images_and_text}


def _mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(**_sizes(state_size=4, num_hidden_layers=3, time_step_rank=4)))


def _mamba2() -> PreTrainedModel:
    heads = {"num_heads": 6, "head_dim": 16, "n_groups": 2, "chunk_size": 8}
    return Mamba2ForCausalLM(Mamba2Config(**_sizes(state_size=8, num_hidden_layers=3, **heads)))


def _jamba() -> PreTrainedModel:
    """A Mamba layer, a Mamba layer with experts, an attention layer, a Mamba layer with experts."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1}
    order = {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2}
    state = {"mamba_d_state": 4, "mamba_dt_rank": 4}
    return JambaForCausalLM(JambaConfig(**_sizes(intermediate_size=96, **_HEADS, **experts, **order, **state)))


def _bamba() -> PreTrainedModel:
    """A Mamba-2 layer, an attention layer, a Mamba-2 layer."""
    heads = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
    order = {"num_hidden_layers": 3, "attn_layer_indices": [1]}
    return BambaForCausalLM(BambaConfig(**_sizes(intermediate_size=96, **_HEADS, **heads, **order)))


def _t5() -> PreTrainedModel:
    shape = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    tokens = {"vocab_size": 400, "eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 1}
    return T5ForConditionalGeneration(T5Config(**shape, **tokens))


def _llava() -> PreTrainedModel:
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sees = CLIPVisionConfig(**shape, image_size=16, patch_size=8, projection_dim=48)
    reads = LlamaConfig(**_sizes(vocab_size=401, intermediate_size=96, num_hidden_layers=3, **_HEADS))
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=sees, text_config=reads, image_token_index=400, vision_feature_layer=-1)
    )


def _sizes(**extra: Any) -> dict[str, Any]:
    tokens = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return {**tokens, "hidden_size": 48, "initializer_range": 0.12, **extra}
