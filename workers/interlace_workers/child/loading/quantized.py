"""bitsandbytes, which holds weights in 8 and 4 bits, for the models that ask for it and for no others."""

import functools
import importlib
import sys
from typing import Any

from nnsight.modeling.quantization import QUANTIZATIONS
from peft import import_utils
from torch import Tensor
from torch.nn import Module

from interlace_workers.order import Load


def enable(order: Load) -> None:
    """Let it be imported again, which `spawn` has kept out of this process.

    PEFT goes on without it, except for a model that needs it: there its adapters are made of layers of bitsandbytes'.
    So does diffusers, which would import it for any pipeline.
    """
    import_utils.is_bnb_available()  # remembers that it is not
    if order.is_pipeline:
        importlib.import_module("diffusers.utils.import_utils")  # remembers it, too
    sys.modules.pop("bitsandbytes", None)
    if order.dtype in QUANTIZATIONS:
        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()


def keep_gradients(module: Module) -> None:
    """Have gradients pass through layers of bitsandbytes' on a processor.

    Weights of four bits stay in the order in which they were loaded: a processor with AVX512-BF16 would reorder them at
    the first forward without a gradient, for a kernel that knows no gradients. A product of eight bits sets inputs that
    are far from the rest to zero and back, in place, which whoever keeps them for its gradient refuses (attention by
    `sdpa` does): it gets a copy.
    """
    for one in module.modules():
        if hasattr(one, "support_avx512bf16_for_cpu"):
            one.support_avx512bf16_for_cpu = False
    library: Any = sys.modules.get("bitsandbytes")
    if library is not None and not hasattr(library.matmul, "__wrapped__"):
        library.matmul = _of_a_copy(library.matmul)


def _of_a_copy(matmul: Any) -> Any:
    @functools.wraps(matmul)
    def multiplied(inputs: Tensor, *rest: Any, **named: Any) -> Any:
        copied = inputs.requires_grad and inputs.device.type == "cpu"
        return matmul(inputs.clone() if copied else inputs, *rest, **named)

    return multiplied
