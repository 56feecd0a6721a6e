"""What this service cannot do with a checkpoint, or must not, known before anything is loaded."""

import importlib.util
from typing import Any

from interlace_state import hostable
from interlace_state.config import Config
from interlace_state.settings.hosting import DeployConfig
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import local

#: Formats of checkpoints whose kernels are for GPUs, as transformers says of them.
_NEEDS_GPU = frozenset(
    {"awq", "aqlm", "bitsandbytes", "compressed-tensors", "eetq", "fbgemm_fp8", "fp_quant", "gptq", "higgs", "spqr"}
    | {"vptq", "auto-round", "nvfp4", "quark"}
)


def forbidden(model: ModelConfig, configured: ModelConfig | None, allowed: DeployConfig) -> str | None:
    """Why the model must not be hosted by command, and what would be right; None where it may.

    ``configured`` is what the file says of it, which always may.
    """
    source_is_new = configured is None or model.source != configured.source
    if source_is_new and local.is_local(model.source):
        folder = local.folder_of(model.source)
        if not any(folder.is_relative_to(one.resolve()) for one in allowed.folders):
            known = ", ".join(map(str, allowed.folders)) or "none"
            return f"{folder} is in no folder that models may be deployed from (`deploy.folders`: {known})."
    if allowed.unprotected or (not source_is_new and _unprotected(model) == _unprotected(configured)):
        return None
    if model.executor == "resident" or model.trust_remote_code:
        what = "A resident model's jobs run" if model.executor == "resident" else "`trust_remote_code` runs code"
        return f"{what} unprotected, which `deploy.unprotected: false` forbids to commands: say it in the file."
    return None


def _unprotected(model: ModelConfig | None) -> object:
    """What of a model decides whose code runs unprotected."""
    return model and (model.executor, model.trusted, model.trust_remote_code)


def against(model: ModelConfig, checkpoint: dict[str, Any], config: Config) -> str | None:
    """Why the model cannot be hosted so, and what would be right; None where nothing is known against it.

    ``checkpoint`` is its config.json.
    """
    if (reason := hostable.against(model, config)) is not None:
        return reason
    if model.quantization is not None and (reason := _against_quantization(model, checkpoint)) is not None:
        return reason
    if model.device != "cpu":
        return None
    said = checkpoint.get("quantization_config")
    method = str(said.get("quant_method", "")) if isinstance(said, dict) else ""
    if method in _NEEDS_GPU:
        return (
            f"Its checkpoint is quantized ({method}), in a form whose kernels need a GPU. Host a checkpoint of the "
            "model that is not quantized, or have it on a GPU (`device: cuda`)."
        )
    return None


def _against_quantization(model: ModelConfig, checkpoint: dict[str, Any]) -> str | None:
    what = f"`quantization: {model.quantization}`"
    if "_diffusers_version" in checkpoint:
        return f"{what} is for models of transformers; this is a pipeline of diffusers. Leave it out."
    if "quantization_config" in checkpoint:
        return f"{what} is for weights that are whole, and its checkpoint is quantized already. Leave it out."
    if model.quantization != "fp8" and importlib.util.find_spec("bitsandbytes") is None:
        return f"{what} needs bitsandbytes beside the workers: `pip install 'interlace[quantized]'`."
    return None
