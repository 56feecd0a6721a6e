"""bitsandbytes, which holds weights in 8 and 4 bits, for the models that ask for it and for no others."""

import importlib
import sys

from nnsight.modeling.quantization import QUANTIZATIONS
from peft import import_utils
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
    """Leave weights of four bits in the order in which bitsandbytes has loaded them.

    A processor with AVX512-BF16 would reorder them at the first forward without a gradient, for a kernel that knows
    no gradients: the next trace that asks for one would fail.
    """
    for one in module.modules():
        if hasattr(one, "support_avx512bf16_for_cpu"):
            one.support_avx512bf16_for_cpu = False
