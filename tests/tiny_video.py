"""A tiny vision-language model that takes video, too: its processor needs torchvision, its weights do not."""

import json
from pathlib import Path

import tiny
import tiny_families
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

VIDEO = "interlace-tests/llava-video-tiny"
tiny.TASKS[VIDEO] = "image-text-to-text"

_PIXELS = {"size": {"height": 16, "width": 16}}
_PROCESSOR = {
    "processor_class": "LlavaOnevisionProcessor",
    "image_processor": {
        **_PIXELS,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_grid_pinpoints": [[16, 16]],
    },
    "video_processor": {**_PIXELS, "video_processor_type": "LlavaOnevisionVideoProcessor"},
    "num_image_tokens": 4,
    "vision_feature_select_strategy": "default",
}


def write(folder: Path) -> None:
    """Write a checkpoint, its tokenizer and its processor's files into ``folder``, without torchvision."""
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 128}
    tokens = {"vocab_size": 402, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = LlavaOnevisionConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=16, patch_size=8, projection_dim=48),
        text_config=LlamaConfig(**shape, **heads, **tokens, initializer_range=0.12),
        image_token_index=400,
        video_token_index=401,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[16, 16]],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(110)
        LlavaOnevisionForConditionalGeneration(config).eval().save_pretrained(folder)
    text = tiny.tokenizer(is_encoder=False)
    text.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"], "pad_token": "<pad>"})
    text.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(_PROCESSOR))
    (folder / "chat_template.jinja").write_text(tiny_families.CHAT)
