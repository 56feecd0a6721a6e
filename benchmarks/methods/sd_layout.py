"""Pipelines of Stable Diffusion's published layouts and sizes, with random weights: all but what the pictures mean.

    python benchmarks/methods/sd_layout.py FOLDER [--layout sd15|sdxl] [--dtype float32|bfloat16] [--seed 0]

`sd15` is Stable Diffusion 1.5 as its repository describes it: a UNet of 860 M parameters, the autoencoder, CLIP
ViT-L/14's text encoder, its safety checker, PNDM. `sdxl` is SDXL's layout (two text encoders, what is added to the
time's embedding, linear projections) at a quarter of its width. The folder is the hub's: `save_pretrained` of diffusers
wrote it. Tokenizers have CLIP's 49,408 entries, of which 512 are bytes, two are the ends, and nothing else is ever
used: a letter is a token.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

VOCABULARY = 49408
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_CLIP = {"hidden_act": "quick_gelu", "num_attention_heads": 12, "num_hidden_layers": 12}
_ENDS = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}


def write(folder: Path, layout: str, seed: int, dtype: torch.dtype) -> dict[str, int]:
    """Draw a pipeline's weights and save it; parameters by component."""
    torch.manual_seed(seed)
    pipeline = LAYOUTS[layout](dtype)
    pipeline.save_pretrained(folder)
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}


def sd15(dtype: torch.dtype) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5."""
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        down_block_types=down,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        cross_attention_dim=768,
    ).to(dtype)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, vocab_size=VOCABULARY, **_CLIP, **_ENDS)
    sight = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    checker = CLIPConfig(vision_config={**sight, "patch_size": 14, "image_size": 224}, projection_dim=768)
    return StableDiffusionPipeline(
        unet=unet,
        vae=_vae().to(dtype),
        text_encoder=CLIPTextModel(text).to(dtype),
        tokenizer=_tokenizer("<|endoftext|>"),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **_BETAS),
        safety_checker=StableDiffusionSafetyChecker(checker).to(dtype),
        feature_extractor=CLIPImageProcessor(),
    )


def sdxl(dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """SDXL with a quarter of its channels and heads; its text encoders have two layers each."""
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(96, 160, 320),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        transformer_layers_per_block=(1, 2, 10),
        projection_class_embeddings_input_dim=6 * 256 + 1280,
        cross_attention_dim=2048,
    ).to(dtype)
    short = {**_CLIP, **_ENDS, "vocab_size": VOCABULARY, "num_hidden_layers": 2}
    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, **short)
    large = {"num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280}
    second = CLIPTextConfig(hidden_size=1280, intermediate_size=5120, **{**short, **large})
    return StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(sample_size=1024, scaling_factor=0.13025).to(dtype),
        text_encoder=CLIPTextModel(first).to(dtype),
        text_encoder_2=CLIPTextModelWithProjection(second).to(dtype),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **_BETAS),
        add_watermarker=False,
    )


LAYOUTS: dict[str, Callable[[torch.dtype], Any]] = {"sd15": sd15, "sdxl": sdxl}


def _vae(**more: Any) -> AutoencoderKL:
    """Eight pixels a latent; both layouts' own."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    shape = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
    return AutoencoderKL(**shape, **blocks, **{"sample_size": 512, **more})


def _tokenizer(pad: str) -> CLIPTokenizer:
    letters = list(bytes_to_unicode().values())
    words = letters + [f"{letter}</w>" for letter in letters]
    words += [f"<unused-{number}>" for number in range(VOCABULARY - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default="sd15")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counts = write(asked.folder, asked.layout, asked.seed, getattr(torch, asked.dtype))
    for name, count in counts.items():
        print(f"{name}: {count:,} parameters")


if __name__ == "__main__":
    main()
