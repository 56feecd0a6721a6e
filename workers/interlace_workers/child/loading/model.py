"""Load a model through nnsight, once, in the zygote."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from nnsight.intervention.serialization import UnknownPersistentIdError
from nnsight.modeling.quantization import QUANTIZATIONS
from nnsight.modeling.transformers import TransformersModel
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from interlace_workers.child.loading import pipeline, quantized, tasks
from interlace_workers.order import Load
from interlace_workers.weights import held, shape

#: nnsight's persistent id -> the attribute of a processor.
_PARTS = {"Tokenizer": "tokenizer", "ImageProcessor": "image_processor", "FeatureExtractor": "feature_extractor"}
_NO_TORCHVISION = (
    "Its processor needs torchvision: `pip install 'interlace[vision]'` beside the workers and on clients; "
    "where torch is a build without CUDA, from the index that this came from."
)


class Persistent(dict[str, Any]):
    """nnsight's persistent id -> the live object; asked for another, raises UnknownPersistentIdError."""

    def __missing__(self, name: str) -> NoReturn:
        raise UnknownPersistentIdError(name)


@dataclass(frozen=True)
class HostedModel:
    """A dispatched model and what a payload may refer to in it."""

    model: Any
    persistent: Persistent
    threads: int
    n_params: int
    size_bytes: int
    #: Whether it is a pipeline of diffusers.
    is_pipeline: bool = False
    #: What `warm.py` runs ahead of a job; empty: nothing.
    rehearsal: bytes = b""


def load(order: Load) -> HostedModel:
    """Load weights where they shall be, ready to trace. Raises whatever the libraries that load them raise.

    Where that is for want of torchvision, an ImportError says how it is had.
    """
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its monitor is a thread, and a fork needs a process of one
    transformers_logging.disable_progress_bar()  # it would go into a log file
    with _torchvision_named():
        model = pipeline.load(order) if order.is_pipeline else _transformers_model(order)
    model._module.eval()
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held(model._module)}
    return HostedModel(
        model=model,
        persistent=persistent_of(model),
        threads=order.threads,
        n_params=sum(shape(parameter).numel() for parameter in model._module.parameters()),
        size_bytes=sum(storages.values()),
        is_pipeline=order.is_pipeline,
    )


@contextlib.contextmanager
def _torchvision_named() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise
        raise ImportError(_NO_TORCHVISION) from error


def persistent_of(model: Any) -> Persistent:
    """What a payload may refer to in a nnsight model as it is now."""
    processor, found = getattr(model, "processor", None), Persistent()
    for name, attribute in _PARTS.items():
        # A client's model holds the parts of its processor each by itself, ours only what the pipeline loads.
        if hasattr(processor, attribute):
            found[name] = getattr(processor, attribute)
    found.update(model._remoteable_persistent_objects())
    # Our own client sends envoys that nobody has touched by their path.
    found.update((f"Envoy:{envoy.path}", envoy) for envoy in model.modules())
    return found


def _transformers_model(order: Load) -> Any:
    if order.task is not None:
        tasks.check(order.path, order.task, trust_remote_code=order.trust_remote_code)
    packed = order.dtype in QUANTIZATIONS  # where `int8` is not torch's
    dtype = order.dtype if packed else getattr(torch, order.dtype, order.dtype)  # else "auto"
    extras: dict[str, Any] = {"trust_remote_code": True} if order.trust_remote_code else {}
    with contextlib.suppress(OSError, ValueError):  # not every task has a tokenizer
        # nnsight cannot guess the tokenizer of a local directory; given one it need not.
        extras["tokenizer"] = AutoTokenizer.from_pretrained(order.path, **extras)
    # Said of a processor, too: a pipeline takes the first GPU that it finds.
    if order.device == "auto" or packed:  # what is quantized cannot be moved afterwards
        extras["device_map"] = order.device if order.device == "auto" else {"": order.device}
    else:
        extras["device"] = order.device
    model = TransformersModel(order.path, task=order.task, dispatch=True, dtype=dtype, **extras)
    if packed and not getattr(model._module, "is_quantized", False):
        # A pipeline of transformers that cannot load what it was told to loads float32, and says so in its log.
        raise ValueError(f"transformers has not loaded it as {order.dtype}")
    quantized.keep_gradients(model._module)
    return model
