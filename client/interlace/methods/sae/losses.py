"""What each kind of sparse autoencoder minimises, as functions of its weights and a batch ``x [batch, d_in]``.

Errors and penalties are summed over dimensions and features and averaged over the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """What is minimised, and its parts."""

    total: "Tensor"
    #: Of the reconstruction alone.
    error: "Tensor"
    #: The penalty without its weight.
    penalty: "Tensor"
    #: [batch, d_sae]
    features: "Tensor"
    #: [batch, d_in]
    reconstruction: "Tensor"
    #: What the penalty is of: the features, or the gate's.
    penalised: "Tensor"


def power(features: "Tensor", p: float) -> "Tensor":
    """The sum of features, none of which is below 0, to the power p (2408.00113, section 4): mean over the batch."""
    if p == 1:
        return features.sum(-1).mean()  # the same, bit for bit, for three tensors of the features' size less
    on = features > 0
    return (torch.where(on, features, 1.0).pow(p) * on).sum(-1).mean()


def standard(w: "Mapping[str, Tensor]", x: "Tensor", p: float, weight: float, *, squared: bool) -> Loss:
    """2408.00113, Eq. 8: the norm of the error and lambda times the features; ``squared`` as the library has it."""
    features = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    reconstruction = features @ w["W_dec"] + w["b_dec"]
    apart = x - reconstruction
    error = apart.pow(2).sum(-1).mean() if squared else apart.norm(dim=-1).mean()
    penalty = power(features, p)
    return Loss(error + weight * penalty, error, penalty, features, reconstruction, features)


def gated(w: "Mapping[str, Tensor]", x: "Tensor", p: float, weight: float) -> Loss:
    """2404.16014, Eq. 8: the penalty is on the gate, which a frozen decoder must be able to reconstruct from."""
    inner = (x - w["b_dec"]) @ w["W_enc"]
    gate = inner + w["b_gate"]
    features = (gate > 0).to(x.dtype) * torch.relu(inner * w["r_mag"].exp() + w["b_mag"])
    reconstruction = features @ w["W_dec"] + w["b_dec"]
    opened = torch.relu(gate)
    error = (x - reconstruction).pow(2).sum(-1).mean()
    auxiliary = (x - opened @ w["W_dec"].detach() - w["b_dec"].detach()).pow(2).sum(-1).mean()
    penalty = power(opened, p)
    return Loss(error + weight * penalty + auxiliary, error, penalty, features, reconstruction, opened)


def top_k(
    w: "Mapping[str, Tensor]", x: "Tensor", k: int, *, whole_batch: bool, dead: "Tensor", aux_weight: float
) -> Loss:
    """2406.04093, Eq. 1 and appendix A.2; ``whole_batch``: the k x batch largest of all (2412.06410, Eq. 5).

    ``dead [d_sae]`` says which features have not fired for long: half as many of these as x has dimensions are to
    explain the error that is left.
    """
    inner = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    flat = inner.flatten() if whole_batch else inner
    top = flat.topk(k * len(x) if whole_batch else k, dim=-1, sorted=False)
    features = torch.zeros_like(flat).scatter(-1, top.indices, top.values).reshape(inner.shape)
    reconstruction = features @ w["W_dec"] + w["b_dec"]
    apart = x - reconstruction
    error = apart.pow(2).sum(-1).mean()
    penalty = _auxiliary(w, apart.detach(), inner, dead)
    return Loss(error + aux_weight * penalty, error, penalty, features, reconstruction, features)


def _auxiliary(w: "Mapping[str, Tensor]", apart: "Tensor", inner: "Tensor", dead: "Tensor") -> "Tensor":
    """The share of the error's variance that the dead features leave unexplained."""
    n_dead = int(dead.sum())
    if not n_dead:
        return torch.zeros((), dtype=apart.dtype, device=apart.device)
    top = torch.where(dead, inner, -torch.inf).topk(min(apart.shape[1] // 2 or 1, n_dead), dim=-1, sorted=False)
    features = torch.zeros_like(inner).scatter(-1, top.indices, top.values)
    left = (apart - features @ w["W_dec"]).pow(2).sum(-1).mean()
    return (left / (apart - apart.mean(0)).pow(2).sum(-1).mean()).nan_to_num(0.0)


def jump_relu(w: "Mapping[str, Tensor]", x: "Tensor", weight: float, bandwidth: float, target: float | None) -> Loss:
    """2407.14435, Eq. 9: the squared error, and lambda times L0 where ``target`` is None.

    With a target it is the library's: lambda (L0 / target - 1)^2, and L0's estimate looks at features after the jump,
    so that a pre-activation just below its threshold, which is 0 after it, moves no threshold.
    """
    inner = torch.relu(x @ w["W_enc"] + w["b_enc"])
    features = _Jump.apply(inner, w["threshold"], bandwidth)
    reconstruction = features @ w["W_dec"] + w["b_dec"]
    error = (x - reconstruction).pow(2).sum(-1).mean()
    counted = inner if target is None else features
    l0 = _Step.apply(counted, w["threshold"], bandwidth).sum(-1).mean()
    penalty = l0 if target is None else (l0 / target - 1).pow(2)
    return Loss(error + weight * penalty, error, penalty, features, reconstruction, features)


def _near(x: "Tensor", threshold: "Tensor", bandwidth: float) -> "Tensor":
    """The rectangle kernel (2407.14435, section 3): 1 within half a bandwidth of the threshold."""
    return (((x - threshold) / bandwidth).abs() < 0.5).to(x.dtype)


class _Jump(torch.autograd.Function):  # type: ignore[misc]
    """x where it is above its threshold; Eq. 11 is its gradient to the threshold."""

    @staticmethod
    def forward(ctx: Any, x: "Tensor", threshold: "Tensor", bandwidth: float) -> "Tensor":
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return x * (x > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: "Tensor") -> "tuple[Tensor, Tensor, None]":
        x, threshold = ctx.saved_tensors
        estimate = -(threshold / ctx.bandwidth) * _near(x, threshold, ctx.bandwidth) * gradient
        return (x > threshold) * gradient, estimate.sum(0), None


class _Step(torch.autograd.Function):  # type: ignore[misc]
    """1 where x is above its threshold; Eq. 12 is its gradient to the threshold, and there is none to x."""

    @staticmethod
    def forward(ctx: Any, x: "Tensor", threshold: "Tensor", bandwidth: float) -> "Tensor":
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: "Tensor") -> "tuple[None, Tensor, None]":
        x, threshold = ctx.saved_tensors
        estimate = -(1.0 / ctx.bandwidth) * _near(x, threshold, ctx.bandwidth) * gradient
        return None, estimate.sum(0), None
