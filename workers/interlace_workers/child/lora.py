"""Load LoRAs into a diffusers pipeline, from tensors that are in memory."""

from collections.abc import Sequence
from typing import Any

import torch

from interlace_workers.order import Adapter


def load(model: Any, loras: Sequence[tuple[Adapter, dict[str, torch.Tensor]]]) -> None:
    """Load."""
