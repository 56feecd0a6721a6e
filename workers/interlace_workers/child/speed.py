"""How fast a model is here, measured once after loading: what a method would take is first guessed from this."""

import time

import torch

from interlace_workers.child.model import HostedModel

_TOKENS = 16
_MOST_PARAMETERS = 1_000_000_000  # more would hold up the loading for seconds


def token_seconds(model: HostedModel) -> float | None:
    """Seconds for a token to go forward, in a row of 16; None where the model takes no tokens, or is large."""
    module = model.model._module
    if model.is_pipeline or model.n_params > _MOST_PARAMETERS:
        return None
    ids = torch.zeros((1, _TOKENS), dtype=torch.long, device=next(module.parameters()).device)
    try:
        with torch.no_grad():
            module(input_ids=ids[:, :1])  # what a first forward pays for
            began = time.perf_counter()
            module(input_ids=ids)
    except Exception:  # noqa: BLE001 - an encoder of pictures refuses in its own way, and nobody asked it for more
        return None
    return (time.perf_counter() - began) / _TOKENS
