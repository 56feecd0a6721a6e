"""Load a model through nnsight, once, in the zygote."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from interlace_workers.order import Load


@dataclass(frozen=True)
class HostedModel:
    """A dispatched model and what a payload may refer to in it."""

    model: Any
    #: nnsight's persistent id -> the live object.
    persistent: dict[str, Any]
    threads: int
    n_params: int
    size_bytes: int
    #: What `warm.py` runs ahead of a job; empty: nothing.
    rehearsal: bytes = b""


def load(order: Load) -> HostedModel:
    """Load weights where they shall be, ready to trace. Raises whatever transformers and nnsight raise."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its monitor is a thread, and a fork needs a process of one
    transformers_logging.disable_progress_bar()  # it would go into a log file
    model = _transformers_model(order)
    model._module.eval()
    tensors = [*model._module.parameters(), *model._module.buffers()]
    return HostedModel(
        model=model,
        # Envoys, too: our own client sends those that nobody has touched by their path.
        persistent=model._remoteable_persistent_objects() | {f"Envoy:{envoy.path}": envoy for envoy in model.modules()},
        threads=order.threads,
        n_params=sum(parameter.numel() for parameter in model._module.parameters()),
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def _transformers_model(order: Load) -> Any:
    dtype = order.dtype if order.dtype == "auto" else getattr(torch, order.dtype)
    extras: dict[str, Any] = {"trust_remote_code": True} if order.trust_remote_code else {}
    with contextlib.suppress(OSError, ValueError):  # not every task has a tokenizer
        # nnsight cannot guess the tokenizer of a local directory; given one it need not.
        extras["tokenizer"] = AutoTokenizer.from_pretrained(order.path, **extras)
    # Said of a processor, too: a pipeline takes the first GPU that it finds.
    extras |= {"device_map": "auto"} if order.device == "auto" else {"device": order.device}
    return TransformersModel(order.path, task=order.task, dispatch=True, dtype=dtype, **extras)
