"""A sparse autoencoder while it is trained: its weights, its optimizer, and what else a step changes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from interlace.methods.sae import losses
from interlace.methods.sae.annealing import Annealing
from interlace.methods.sae.losses import Loss
from interlace.methods.sae.spec import L0, K, PAnneal, TrainParams
from interlace.methods.shared.features.dictionary import Dictionary

if TYPE_CHECKING:
    from torch import Tensor

_CLIP = 1.0  # the norm that gradients are cut to, where they are


class Coder:
    """One step at a time: `step` for a batch, `dictionary` for what there is. Equal seeds and batches: equal bits."""

    def __init__(self, params: TrainParams, d_in: int, seed: int, device: Any = "cpu") -> None:
        self.params = params
        self.weights = {name: one.to(device).requires_grad_() for name, one in initial(params, d_in, seed).items()}
        # beta1 = 0 for gated and jumprelu: as 2404.16014 and 2407.14435 trained.
        beta = 0.0 if params.arch in ("gated", "jumprelu") else 0.9
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr=params.lr, betas=(beta, 0.999))
        sparsity = params.sparsity
        self.annealing = (
            Annealing.begin(sparsity, params.steps, params.variant) if isinstance(sparsity, PAnneal) else None
        )
        #: Positions since each feature fired.
        self.silent = torch.zeros(self.d_sae, dtype=torch.long, device=device)
        #: Of batchtopk: the estimated threshold, and of how many batches it is.
        self.threshold, self.thresholds_seen = 0.0, 0

    @property
    def d_sae(self) -> int:
        return int(self.weights["W_dec"].shape[0])

    def step(self, number: int, x: "Tensor") -> Loss:
        """Learn from a batch ``[batch, d_in]``; ``number`` counts steps from 0."""
        params, w = self.params, self.weights
        if number == 0 and params.arch in ("topk", "batchtopk"):
            w["b_dec"].data = geometric_median(x)
        loss = self.loss(number, x)
        self.optimizer.zero_grad()
        loss.total.backward()
        with torch.no_grad():
            # Directions in which only the norms of the decoder's rows would change are of no use.
            rows = w["W_dec"] / w["W_dec"].norm(dim=-1, keepdim=True)
            w["W_dec"].grad -= (w["W_dec"].grad * rows).sum(-1, keepdim=True) * rows
            if params.arch in ("topk", "batchtopk") or (params.arch == "jumprelu" and params.variant == "library"):
                torch.nn.utils.clip_grad_norm_(list(w.values()), _CLIP)
        self.optimizer.param_groups[0]["lr"] = params.lr * rate(params, number)
        self.optimizer.step()
        with torch.no_grad():
            w["W_dec"] /= w["W_dec"].norm(dim=-1, keepdim=True)
            self._after(number, loss)
        return loss

    def loss(self, number: int, x: "Tensor") -> Loss:
        """What a batch gives at a step."""
        params, sparsity, w = self.params, self.params.sparsity, self.weights
        ramp = min(number / params.sparsity_warmup, 1.0) if params.sparsity_warmup else 1.0
        if isinstance(sparsity, K):
            return losses.top_k(
                w,
                x,
                sparsity.k,
                whole_batch=params.arch == "batchtopk",
                dead=self.silent >= sparsity.dead_after,
                aux_weight=sparsity.aux_weight,
            )
        if isinstance(sparsity, L0):
            target = sparsity.target if params.variant == "library" else None
            return losses.jump_relu(w, x, ramp * sparsity.weight, sparsity.bandwidth, target)
        p, weight = (self.annealing.p, self.annealing.weight) if self.annealing else (1.0, sparsity.weight)
        if params.arch == "gated":
            return losses.gated(w, x, p, ramp * weight)
        squared = (params.error or ("squared" if params.variant == "library" else "unsquared")) == "squared"
        return losses.standard(w, x, p, ramp * weight, squared=squared)

    def _after(self, number: int, loss: Loss) -> None:
        fired = (loss.features > 0).any(0)
        self.silent += len(loss.features)
        self.silent[fired] = 0
        if self.annealing is not None:
            next_p = self.annealing.next_p
            following = None if next_p is None else float(losses.power(loss.penalised, next_p))
            self.annealing.after(number, float(loss.penalty), following)
        sparsity = self.params.sparsity
        if isinstance(sparsity, K) and self.params.arch == "batchtopk" and number >= sparsity.threshold_start:
            self._see_threshold(loss.features.detach(), sparsity)

    def _see_threshold(self, features: "Tensor", sparsity: K) -> None:
        """2412.06410, Eq. 7: the mean over batches of the least feature that is on; a moving average in the library."""
        on = features[features > 0]
        least = float(on.min()) if len(on) else 0.0
        self.thresholds_seen += 1
        moving = sparsity.threshold_decay if self.params.variant == "library" else 1 - 1 / self.thresholds_seen
        keep = 0.0 if self.thresholds_seen == 1 else moving
        self.threshold = keep * self.threshold + (1 - keep) * least

    def dictionary(self, scale: float, x: "Tensor", metadata: Mapping[str, Any]) -> Dictionary:
        """What was learned on activations divided by ``scale``, for activations as they are.

        Decoder rows keep their norm of 1, and features are in the activations' own units. ``x`` is a batch of what it
        was trained on, for a threshold that no step has estimated.
        """
        arch = "jumprelu" if self.params.arch == "batchtopk" else self.params.arch
        weights = {name: one.detach().clone() for name, one in self.weights.items()}
        if self.params.arch == "batchtopk":
            if not self.thresholds_seen:
                assert isinstance(self.params.sparsity, K)
                self._see_threshold(self.loss(0, x).features.detach(), self.params.sparsity)
            weights["threshold"] = torch.full_like(weights["b_enc"], self.threshold)
        for name in ("b_enc", "b_dec", "b_gate", "b_mag", "threshold"):
            if name in weights:
                weights[name] *= scale
        k = self.params.sparsity.k if isinstance(self.params.sparsity, K) and arch == "topk" else None
        return Dictionary(arch, weights, k, self.params.arch != "jumprelu", False, metadata)

    def tensors(self) -> "dict[str, Tensor]":
        """What a checkpoint keeps in tensors."""
        kept = {f"weights.{name}": one.detach() for name, one in self.weights.items()}
        for name, one in self.weights.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if one in self.optimizer.state:
                    kept[f"{moment}.{name}"] = self.optimizer.state[one][moment]
        return {**kept, "silent": self.silent}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside them."""
        annealing = self.annealing.state() if self.annealing else None
        return {"threshold": self.threshold, "thresholds_seen": self.thresholds_seen, "annealing": annealing}

    def restore(self, step: int, tensors: "Mapping[str, Tensor]", state: Mapping[str, Any]) -> None:
        """What `tensors` and `state` gave after ``step`` steps."""
        with torch.no_grad():
            for name, one in self.weights.items():
                one.copy_(tensors[f"weights.{name}"])
                if step:
                    moments = {moment: tensors[f"{moment}.{name}"].clone().to(one.device) for moment in _MOMENTS}
                    self.optimizer.state[one] = {"step": torch.tensor(float(step)), **moments}
            self.silent.copy_(tensors["silent"])
        self.threshold, self.thresholds_seen = float(state["threshold"]), int(state["thresholds_seen"])
        if self.annealing is not None:
            self.annealing.restore(state["annealing"])


_MOMENTS = ("exp_avg", "exp_avg_sq")


def initial(params: TrainParams, d_in: int, seed: int) -> "dict[str, Tensor]":
    """Decoder rows in random directions, of norm 1, and the encoder their transpose (a tenth of it for standard)."""
    d_sae = params.d_sae or 8 * d_in
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_sae, d_in, generator=generator)
    rows /= rows.norm(dim=-1, keepdim=True)
    encoder = rows.T * (0.1 if params.arch == "standard" else 1.0)
    weights = {"W_enc": encoder.contiguous().clone(), "W_dec": rows, "b_dec": torch.zeros(d_in)}
    if params.arch == "gated":
        return weights | {name: torch.zeros(d_sae) for name in ("b_gate", "b_mag", "r_mag")}
    weights["b_enc"] = torch.zeros(d_sae)
    if isinstance(params.sparsity, L0):
        weights["threshold"] = torch.full((d_sae,), params.sparsity.threshold)
    return weights


def rate(params: TrainParams, number: int) -> float:
    """What the learning rate is multiplied by at a step."""
    if number < params.lr_warmup:
        return number / params.lr_warmup
    if params.decay_start is not None and number >= params.decay_start:
        return (params.steps - number) / (params.steps - params.decay_start)
    return 1.0


def geometric_median(x: "Tensor", rounds: int = 100, close: float = 1e-5) -> "Tensor":
    """The point whose summed distance to all rows is least (2406.04093, appendix A.1), by Weiszfeld's rule."""
    guess = x.mean(0)
    for _ in range(rounds):
        weights = 1 / (x - guess).norm(dim=-1).clamp_min(1e-12)
        former, guess = guess, (weights[:, None] * x).sum(0) / weights.sum()
        if (guess - former).norm() < close:
            break
    return guess
