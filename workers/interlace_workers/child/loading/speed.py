"""How fast a model is here, measured once after loading: what a method would take is first guessed from this."""

import time
from typing import Any

import torch

from interlace_workers.child.loading.model import HostedModel

_ROWS, _TOKENS = 2, 16
_MOST_PARAMETERS = 500_000_000  # more would hold up the loading for seconds


def token_seconds(model: HostedModel) -> float | None:
    """Processor seconds for a token to go forward, in a batch of 32; None where the model takes none, or is large.

    Of a diffusion pipeline, for one position of latents to go through its denoiser.

    The model has gone forward before, so that what a first time costs is no part of it.
    """
    module = model.model._module
    if model.n_params > _MOST_PARAMETERS:
        return None
    if model.is_pipeline:
        return _of_denoiser(model)
    ids = torch.zeros((_ROWS, _TOKENS), dtype=torch.long, device=next(module.parameters()).device)
    try:
        with torch.no_grad():
            began = time.process_time()  # what else runs on the machine is no part of it
            module(input_ids=ids)
    except Exception:  # noqa: BLE001 - an encoder of pictures refuses in its own way, and nobody asked it for more
        return None
    seconds: float = (time.process_time() - began) / int(ids.numel())
    return seconds


def _of_denoiser(model: HostedModel) -> float | None:
    unet: Any = getattr(model.model.pipeline, "unet", None)
    try:
        first = next(unet.parameters())
        size = unet.config.sample_size
        latents = torch.zeros(_ROWS, unet.config.in_channels, size, size, dtype=first.dtype, device=first.device)
        words = torch.zeros(_ROWS, _TOKENS, unet.config.cross_attention_dim, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            began = time.process_time()
            unet(latents, torch.tensor(0, device=first.device), encoder_hidden_states=words)
    except Exception:  # noqa: BLE001 - of another layout: it refuses in its own way, as above
        return None
    seconds: float = (time.process_time() - began) / (_ROWS * size * size)
    return seconds
