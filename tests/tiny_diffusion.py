"""Pipelines of diffusers: one with real abilities, and tiny ones of other layouts with seeded random weights."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

#: The layout of Stable Diffusion 1.x and 2.x; it draws shapes. Its files are in the repository.
SHAPES = "local/shapes-diffusion-mini"
XL = "interlace-tests/xl-tiny"
FLUX = "interlace-tests/flux-tiny"
#: A DiT that takes text.
PIXART = "interlace-tests/pixart-tiny"

#: A DiT that takes classes, by number.
DIT = "interlace-tests/dit-tiny"

ASSET = Path(__file__).parent / "assets" / "shapes-diffusion-mini"
_WIDTH = 32


def write_all(home: Path) -> dict[str, Path]:
    """Write the random ones below ``home``; the folder of each pipeline, by its repo id."""
    folders = {SHAPES: ASSET}
    builders: dict[str, Callable[[], Any]] = {XL: _xl, FLUX: _flux, PIXART: _pixart, DIT: _dit}
    for seed, (repo_id, build) in enumerate(builders.items()):
        folders[repo_id] = home / repo_id
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = build()
        pipeline.save_pretrained(folders[repo_id])
    return folders


def pndm() -> PNDMScheduler:
    """Of Stable Diffusion 1.5, for the shapes pipeline: it asks the denoiser once more than there are steps."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, prediction_type="v_prediction", **betas)


def xl(folder: Path) -> Path:
    """Write the one of SDXL's layout; its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _xl().save_pretrained(folder)
    return folder


def _vae() -> AutoencoderKL:
    """Two pixels a latent."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    groups = {"norm_num_groups": 8, "shift_factor": 0.1}  # the latter is Flux's
    return AutoencoderKL(block_out_channels=[16, 32], latent_channels=4, **groups, **blocks)


def _text_config(**more: Any) -> CLIPTextConfig:
    shape = {"hidden_size": _WIDTH, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    tokenizer = _tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    return CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=20, **shape, **ids, **more)


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(ASSET / "tokenizer")


def _xl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
        cross_attention_dim=2 * _WIDTH,
    )
    return StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(projection_dim=_WIDTH)),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        add_watermarker=False,
    )


def _flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        vae=_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=_t5(),
        tokenizer=_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
    )


def _pixart() -> PixArtSigmaPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=_WIDTH,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        transformer=transformer,
        vae=_vae(),
        scheduler=DPMSolverMultistepScheduler(),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
    )


def _dit() -> DiTPipeline:
    shape = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 2, "patch_size": 2, "sample_size": 8}
    transformer = DiTTransformer2DModel(out_channels=8, num_embeds_ada_norm=1000, **shape)
    return DiTPipeline(transformer=transformer, vae=_vae(), scheduler=DDIMScheduler())


def _t5() -> T5EncoderModel:
    shape = {"d_model": _WIDTH, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return T5EncoderModel(T5Config(vocab_size=len(_t5_tokenizer()), **shape))


def _t5_tokenizer() -> T5TokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in ("a", "large", "red", "circle"))]
    letters = [*string.ascii_lowercase, "\u2581"]
    return T5TokenizerFast(vocab=[(word, -float(rank)) for rank, word in enumerate(words + letters)], extra_ids=0)
