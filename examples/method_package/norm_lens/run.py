"""The function: the same in a notebook and in a job."""

from typing import Any

import torch

from interlace.methods.base import Metric, Report
from norm_lens.spec import NormParams, NormResult


def run(model: Any, params: NormParams, report: Report) -> NormResult:
    """Read prompts one by one; keep all norms as an artifact, [prompts, blocks]."""
    rows = []
    prompts = report.texts(params.prompts)
    for number, prompt in enumerate(prompts, start=1):
        tokens = model.tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            states = model._module(**tokens, output_hidden_states=True).hidden_states[1:]
        rows.append(torch.stack([state.norm(params.order, dim=-1).mean() for state in states]))
        report.count(forwards=1, tokens=tokens["input_ids"].numel())
        report.progress(number, len(prompts))
    norms = torch.stack(rows)
    kept = report.artifact("data", {"norms": norms}, {"order": params.order}, name="norms")
    mean = norms.mean(0)
    return NormResult(
        metrics=(Metric(name="last_norm", value=float(mean[-1]), n=len(prompts)),),
        artifacts=(kept,),
        norms=mean.tolist(),
    )
