"""A candidate as something that reads texts: the hosted model, with an edit or an adapter, or with other weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Opened
from interlace.methods.shared import edits, weights
from interlace.protocol.errors import InvalidArtifact

#: Token ids [1, tokens] -> log-probabilities [tokens, vocabulary] of the token after each, in fp64.
Reader = Callable[[Tensor], Tensor]


def positions(module: Any) -> int | None:
    """How many tokens the model reads at once; None where it has no bound."""
    config = module.config.get_text_config()
    bounds = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings"))
    return min((bound for bound in bounds if isinstance(bound, int)), default=None)


@contextmanager
def reading(model: Any, module: nn.Module, opened: Opened | None) -> Iterator[Reader]:
    """The model as an artifact would have it. Raises InvalidArtifact for one that is no model nor change of one."""
    if opened is None:
        yield lambda ids: _log_probs(module(ids, use_cache=False))
    elif opened.kind == "weights":
        tensors = weights.checkpoint(model, opened)
        parts: dict[str, Tensor] = {
            name: tensors[name].to(one.device, one.dtype) if name in tensors else one
            for name, one in module.named_parameters()
        }
        call: Any = torch.func.functional_call
        yield lambda ids: _log_probs(call(module, parts, (ids,), {"use_cache": False}))
    elif opened.kind in ("edit", "peft"):
        with edits.attached(model, [opened]):
            yield lambda ids: _log_probs(module(ids, use_cache=False))
    else:
        raise InvalidArtifact(f"{opened.ref} is a {opened.kind}, which reads no texts.")


def _log_probs(output: Any) -> Tensor:
    logits: Tensor = output.logits[0]
    return logits.double().log_softmax(-1)  # in fp32 the last digits hang on where in memory they lie
