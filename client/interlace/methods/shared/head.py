"""What comes after the last block of a language model: its last norm and its head."""

from typing import TYPE_CHECKING, Any

import torch

from interlace.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

#: Blocks and final norm, by family.
_PLACES = (
    ("transformer.h", "transformer.ln_f"),
    ("model.layers", "model.norm"),
    ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    ("backbone.layers", "backbone.norm_f"),
)


def places(module: Any) -> tuple[Any, Any, Any]:
    """A model's blocks, final norm and head. Raises InvalidRequest."""
    names, head = {name for name, _ in module.named_modules()}, module.get_output_embeddings()
    for found in _PLACES:
        if names.issuperset(found) and head is not None:
            blocks, norm = map(module.get_submodule, found)
            return blocks, norm, head
    known = "; ".join(", ".join(found) for found in _PLACES)
    raise InvalidRequest(f"{type(module).__name__} has no head, or blocks and last norm elsewhere than at: {known}.")


def direct_effect(module: Any, states: "Tensor", directions: "Tensor") -> "Tensor":
    """What each of ``directions`` [n, width], added to the last block's output, does to the logits: [n, vocabulary].

    The derivative of norm and head, averaged over ``states`` [rows, width], which are some that the last block gives:
    a norm divides by the size of what it reads. Less its mean over the vocabulary, which no probability sees.
    """
    _, norm, head = places(module)
    states = states.to(head.weight.dtype)
    through = [
        torch.autograd.functional.jvp(norm, states, one.to(states).expand_as(states).contiguous())[1].mean(0)
        for one in directions
    ]
    with torch.no_grad():
        effects = (torch.stack(through) @ head.weight.T).float()
    return effects - effects.mean(-1, keepdim=True)
