"""Steps that take time, with checkpoints, progress and artifacts."""

import os
import socket
import time
from typing import Any

import torch

from interlace.methods.base import Metric, Report
from kit_methods.spec import StepsParams, StepsResult

CONFIGS: dict[str, dict[str, Any]] = {
    "texts": {"texts": ["one", "two"]},
    "edit": {"format": 1, "model_type": "gpt2", "edits": [{"layer": 1, "site": "mlp_out", "form": "low_rank"}]},
    "sae": {"architecture": "standard", "d_in": 4, "d_sae": 4},
    "peft": {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["c_attn"]},
}
PEFT = "base_model.model.transformer.h.0.attn.c_attn"


def run(model: Any, params: StepsParams, report: Report) -> StepsResult:
    former = report.resumed()
    first, total = (0, torch.zeros(())) if former is None else (former.step, former.tensors["total"])
    state = {} if former is None else former.state
    if former is not None:
        torch.set_rng_state(former.tensors["random"])
        assert state == {"note": "kept"}
    step, warnings = first, ()
    for step in range(first + 1, params.steps + 1):
        total = total + torch.rand(())
        time.sleep(params.pause)
        report.progress(step, params.steps, total=float(total))
        report.checkpoint(step, {"total": total, "random": torch.get_rng_state()}, {"note": "kept"})
        print(f"step {step}", flush=True)
        if report.stopping:
            warnings = (f"stopped at {step}",)
            break
    tokens = model.tokenizer("The Eiffel Tower is in", return_tensors="pt")
    with torch.no_grad():
        logits = model._module(**tokens).logits.double().sum()
    report.count(forwards=1, tokens=tokens["input_ids"].numel())
    read: dict[str, Any] = {}
    if params.texts is not None:
        read["texts"] = report.texts(params.texts)
    if params.source is not None:
        opened = report.open(params.source)
        read["source"] = {name: tensor.sum().item() for name, tensor in opened.tensors.items()}
        read["config"] = dict(opened.config)
    made = tuple(make(report, kind, params.size) for kind in params.makes)
    if params.fault:
        made = FAULTS[params.fault](report, made)
    return StepsResult(
        metrics=(Metric(name="nothing", value=float("nan")),),
        artifacts=made,
        warnings=warnings,
        total=float(total),
        first=first,
        logits=float(logits),
        read=read,
    )


def make(report: Report, kind: str, size: int) -> str:
    tensors = {"x": torch.arange(size, dtype=torch.float32)}
    if kind == "texts":
        tensors = {}
    elif kind == "peft":
        tensors = {f"{PEFT}.lora_A.weight": torch.ones(1, 64), f"{PEFT}.lora_B.weight": torch.ones(192, 1)}
    elif kind == "edit":
        tensors = {"0.A": torch.ones(1, 256), "0.B": torch.ones(64, 1)}
    return report.artifact(kind, tensors, CONFIGS.get(kind, {"what": kind}), name=f"my {kind}")


def fail(report: Report, made: tuple[str, ...]) -> tuple[str, ...]:
    raise ValueError("on purpose")


def crash(report: Report, made: tuple[str, ...]) -> tuple[str, ...]:
    os._exit(7)


def lie(report: Report, made: tuple[str, ...]) -> tuple[str, ...]:
    return ("artifact:0123456789abcdef@" + "0" * 64,)


def spoil(report: Report, made: tuple[str, ...]) -> tuple[str, ...]:
    """Give a probe whose tensor is of whole numbers: the parent must refuse it."""
    return (report.artifact("probe", {"x": torch.ones(2, dtype=torch.int64)}, {}),)


def escape(report: Report, made: tuple[str, ...]) -> tuple[str, ...]:
    socket.socket()
    return made


def deaf(report: Report, made: tuple[str, ...]) -> tuple[str, ...]:
    time.sleep(120)
    return made


FAULTS = {"fail": fail, "crash": crash, "lie": lie, "spoil": spoil, "escape": escape, "deaf": deaf}
