"""What cannot be hosted whatever its checkpoint is: known from the configuration alone, before anything is fetched."""

from interlace_state.config import Config
from interlace_state.settings.models import ModelConfig

#: Bytes that a replica's processes hold beside the weights: measured with SmolLM2, see docs/models.md.
BASE_BYTES = 480 << 20


def against(model: ModelConfig, config: Config) -> str | None:
    """Why the model cannot be hosted so, and what would be right; None where nothing is known against it yet."""
    if model.executor == "resident" and config.isolation == "required":
        return "`isolation: required` leaves no room for resident models, whose jobs run unprotected."
    if model.gpus:
        return _against_gpus(model, config)
    if model.quantization == "fp8" and model.device == "cpu":
        return (
            "`quantization: fp8` needs a GPU of compute capability 8.9 or newer: processors do not multiply it. Here "
            "`int8`, `nf4` and `fp4` work, or have it on a GPU: `executor: resident`, `trusted`, `device: cuda`."
        )
    return None


def too_tight(config: Config) -> str | None:
    """Why no model whatever has room; None where one may. A placer says it with the weights counted."""
    limit = config.memory.limit_bytes
    if limit is not None and limit < BASE_BYTES:
        return (
            f"A replica takes {_mib(BASE_BYTES)} beside its weights, and all models together may take {_mib(limit)} "
            "(`memory.limit_bytes`)."
        )
    return None


def _against_gpus(model: ModelConfig, config: Config) -> str | None:
    if config.runtime != "ray":
        return f"`gpus: {model.gpus:g}` are Ray's to reserve: set `runtime: ray`."
    if model.executor != "resident" or model.device == "cpu":
        return "A model with `gpus` is resident: set `executor: resident`, `trusted`, and `device: cuda` or `auto`."
    return None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
