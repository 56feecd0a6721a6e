"""Our steps beside those of `dictionary_learning` 0.1.0, from the same weights on the same batches."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer

from interlace.methods.sae.coder import Coder
from interlace.methods.sae.formats import _CLASSES
from interlace.methods.sae.spec import TrainParams

_D, _F, _BATCH, _STEPS = 32, 96, 64, 300
_COMMON = {"steps": _STEPS, "activation_dim": _D, "dict_size": _F, "layer": 0, "lm_name": "-", "device": "cpu"}
_RAMPS = {"warmup_steps": 20, "sparsity_warmup_steps": 40, "lr": 1e-3}
_ANNEAL = {"initial_sparsity_penalty": 0.1, "anneal_start": 60, "p_end": 0.2, "sparsity_function": "Lp^p"}
_OURS = {"type": "p_anneal", "weight": 0.1, "anneal_start": 60}
_K = {"type": "k", "k": 6, "threshold_start": 51, "dead_after": 10_000_000}
#: Their trainer and its arguments; our architecture and sparsity.
_PAIRS: dict[str, tuple[Any, dict[str, Any], str, dict[str, Any]]] = {
    "standard": (StandardTrainer, {**_RAMPS, "l1_penalty": 0.1}, "standard", {"type": "l1", "weight": 0.1}),
    "standard, annealed": (PAnnealTrainer, {**_RAMPS, **_ANNEAL}, "standard", _OURS),
    "gated": (GatedSAETrainer, {**_RAMPS, "l1_penalty": 0.1}, "gated", {"type": "l1", "weight": 0.1}),
    "gated, annealed": (GatedAnnealTrainer, {**_RAMPS, **_ANNEAL}, "gated", _OURS),
    "topk": (TopKTrainer, {"lr": 1e-3, "warmup_steps": 20, "k": 6, "threshold_start_step": 50}, "topk", _K),
    "batchtopk": (
        BatchTopKTrainer, {"lr": 1e-3, "warmup_steps": 20, "k": 6, "threshold_start_step": 50}, "batchtopk", _K
    ),
    "jumprelu": (
        JumpReluTrainer, {**_RAMPS, "bandwidth": 0.01, "target_l0": 6.0}, "jumprelu",
        {"type": "l0", "weight": 1.0, "target": 6.0, "bandwidth": 0.01},
    ),
}  # fmt: skip


def compare(say: Callable[..., None]) -> dict[str, Any]:
    """The largest difference of a weight, over the largest weight, after 100 and 300 steps; and of p and lambda.

    `gradient`: of a gradient, where ours is had at their weights, every 25 steps. Steps apart add up; where a slope
    jumps (jumprelu) or is steep at 0 (p below 1) a rounding error grows, and only the gradient tells of the rule.
    """
    found: dict[str, Any] = {}
    for name, (trainer_class, arguments, arch, sparsity) in _PAIRS.items():
        torch.manual_seed(0)
        theirs = trainer_class(**_COMMON, **arguments)
        params = TrainParams.model_validate(
            {
                "data": ["-"], "layer": 0, "arch": arch, "sparsity": sparsity, "variant": "library", "steps": _STEPS,
                "batch": _BATCH, "d_sae": _F, "lr": 1e-3, "lr_warmup": 20, "sparsity_warmup": 40,
            }
        )  # fmt: skip
        ours = Coder(params, _D, 0)
        names = _CLASSES[type(theirs.ae).__name__][1]
        with torch.no_grad():
            for their, (our, turned) in names.items():
                if our in ours.weights:
                    value = theirs.ae.state_dict()[their]
                    ours.weights[our].copy_(value.T if turned else value)
        batches = torch.Generator().manual_seed(1)
        apart, gradients = [], [0.0]
        for step in range(_STEPS):
            x = torch.randn(_BATCH, _D, generator=batches).relu() @ torch.randn(_D, _D, generator=batches).sign() / 6
            if step % 25 == 24:
                gradients.append(_gradients(theirs, ours, names, step, x))
            theirs.update(step, x)
            ours.step(step, x)
            if step + 1 in (100, _STEPS):
                apart.append(_apart(theirs.ae.state_dict(), ours.weights, names))
        row: dict[str, Any] = {"gradient": max(gradients), "after_100": apart[0], "after_300": apart[1]}
        if ours.annealing is not None:
            row |= {"p": ours.annealing.p, "p_theirs": theirs.p}
            row |= {"weight": ours.annealing.weight, "weight_theirs": theirs.sparsity_coeff}
        if arch == "batchtopk":
            row |= {"threshold": ours.threshold, "threshold_theirs": float(theirs.ae.threshold)}
        say(part="library", kind=name, **row)
        found[name] = row
    return found


def _gradients(theirs: Any, ours: Coder, names: dict[str, tuple[str, bool]], step: int, x: torch.Tensor) -> float:
    for name in ("lp_loss", "scaled_lp_loss", "pre_norm_auxk_loss"):  # parts of the last graph, which has no copy
        if hasattr(theirs, name):
            setattr(theirs, name, None)
    trainer = copy.deepcopy(theirs)
    trainer.ae.zero_grad()
    trainer.loss(x, step=step).backward()
    kept = {name: one.detach().clone() for name, one in ours.weights.items()}
    state = dict(trainer.ae.named_parameters())
    with torch.no_grad():
        for their, (our, turned) in names.items():
            if our in ours.weights:
                ours.weights[our].copy_(state[their].T if turned else state[their])
                ours.weights[our].grad = None
    ours.loss(step, x).total.backward()
    found = {our: one.grad for our, one in ours.weights.items()}
    apart = _apart({their: one.grad for their, one in state.items()}, found, names)
    with torch.no_grad():
        for name, one in kept.items():
            ours.weights[name].copy_(one)
    return apart


def _apart(theirs: dict[str, Any], ours: dict[str, Any], names: dict[str, tuple[str, bool]]) -> float:
    most = 0.0
    for their, (our, turned) in names.items():
        if our in ours:
            value = (theirs[their].T if turned else theirs[their]).detach()
            most = max(most, float((value - ours[our].detach()).abs().max() / value.abs().max().clamp_min(1e-6)))
    return most
