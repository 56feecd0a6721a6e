"""Random dictionaries and pairs of prompts for tests of circuits: no training, and active features all the same."""

from typing import Any

import torch

from interlace.methods.shared.features.dictionary import Dictionary

PAIRS = [
    {"clean": f"The city of {one} is", "patch": f"The city of {other} is", "answer": "Paris", "patch_answer": "two"}
    for one, other in (("Rome", "London"), ("France", "Rome"), ("London", "France"))
]


def dictionary(d_in: int, d_sae: int, seed: int, architecture: str = "standard", **metadata: Any) -> Dictionary:
    """Random rows of norm 1, and the encoder their transpose: half of the features are on."""
    dice = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_sae, d_in, generator=dice)
    rows /= rows.norm(dim=-1, keepdim=True)
    weights = {"W_dec": rows, "W_enc": rows.T.contiguous(), "b_dec": 0.1 * torch.randn(d_in, generator=dice)}
    if architecture == "gated":
        weights |= {name: 0.1 * torch.randn(d_sae, generator=dice) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        weights["b_enc"] = 0.1 * torch.randn(d_sae, generator=dice)
    if architecture == "jumprelu":
        weights["threshold"] = torch.full((d_sae,), 0.05)
    return Dictionary(architecture, weights, 6 if architecture == "topk" else None, metadata=metadata)


def artifact(d_in: int, d_sae: int, seed: int, **metadata: Any) -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    """The same as the parts of an artifact."""
    made = dictionary(d_in, d_sae, seed, **metadata)
    return "sae", dict(made.weights), made.config()


def hooks(module: torch.nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())
