"""`lake.merge`: a model and what was trained beside it, as one checkpoint."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Metric, Report
from interlace.methods.lake.spec import MergeParams, MergeResult
from interlace.methods.shared.edits import deltas, read
from interlace.methods.shared.sites import unwrapped
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: MergeParams, report: Report) -> MergeResult:
    """See `MergeParams`. Raises InvalidArtifact for what does not fit the model, InvalidRequest for a model whose
    weights cannot be added to."""
    with torch.no_grad():
        module = unwrapped(model)
        more = _changes(model, params, report)
        tensors = _tensors(module)
        moved = whole = 0.0
        for path, delta in more.items():
            if path not in tensors or not tensors[path].is_floating_point():
                raise InvalidRequest(
                    f"{path} cannot be added to: it is quantised, or another parameter by another name. Attach these "
                    "with `edits=` instead."
                )
            weight = tensors[path]
            tensors[path] = (weight.float() + delta).to(weight.dtype)
            moved += float(delta.double().square().sum())
            whole += float(weight.double().square().sum())
        ref = report.artifact("weights", tensors, _config(module), name=params.title or "merged weights")
    report.count(forwards=1)  # of every weight, once
    return MergeResult(
        metrics=(
            Metric(name="changed", value=len(more), n=len(tensors)),
            Metric(name="relative_change", value=float(f"{(moved / max(whole, 1e-30)) ** 0.5:.6g}"), n=len(more)),
        ),
        artifacts=(ref,),
    )


def _changes(model: Any, params: MergeParams, report: Report) -> dict[str, Tensor]:
    """What is added to each parameter, in fp32."""
    found: dict[str, Tensor] = {}
    for number, name in enumerate(params.of):
        share = 1.0 if params.shares is None else params.shares[number]
        for path, delta in deltas(model, read(model, [report.open(name)])).items():
            found[path] = found[path] + share * delta if path in found else share * delta
        report.progress(number + 1, len(params.of))
    return found


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: each tensor once, under its first name, as the libraries tie the others to it."""
    seen: set[tuple[int, torch.Size]] = set()
    found = {}
    for path, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            found[path] = tensor.detach().cpu().contiguous().clone()
    return found


def _config(module: nn.Module) -> dict[str, Any]:
    config: Any = module.config
    said: dict[str, Any] = json.loads(config.to_json_string())
    return {**said, "architectures": [type(module).__name__]}
