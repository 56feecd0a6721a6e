"""`sae.train`: a sparse autoencoder of the activations at one place of a model (2408.00113, section 4)."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from interlace.methods.base import Metric, Report, Table
from interlace.methods.sae.coder import Coder
from interlace.methods.sae.harvest import Harvester, Rounds
from interlace.methods.sae.losses import Loss
from interlace.methods.sae.spec import TrainParams, TrainResult
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

#: The version of SAELens' files that `cfg.json` is of: an older one, or none, is read by other rules.
SAELENS_FORMAT = "6.0.0"
_CURVE = 100  # rows of the table, at most
_CHUNK = 4096  # activations that are measured at once, at most


def run(model: Any, params: TrainParams, report: Report) -> TrainResult:
    """Train, and keep the dictionary as an artifact in SAELens' layout."""
    corpus = Corpus.of(report, model, params.data, params.context)
    harvester = Harvester.of(model, params.site, params.layer, report, params.skip_first)
    size = max(params.buffer // params.batch, 1) * params.batch
    rounds = Rounds(corpus, harvester, report.seed, size, params.batch, params.model_batch)
    begun = _begin(params, rounds, report)
    coder, scale, curve = begun.coder, begun.scale, begun.curve
    every = max(1, params.steps // _CURVE)
    done = begun.step
    for step in range(begun.step, params.steps):
        if report.stopping:
            break
        x = rounds.next() / scale
        loss = coder.step(step, x)
        done = step + 1
        if step % every == 0 or done == params.steps:
            curve.append(_row(step, coder, x, loss))
            report.progress(done, params.steps, loss=curve[-1][1], l0=curve[-1][4], explained=curve[-1][5])
        else:
            report.progress(done, params.steps)
        state = {"coder": coder.state(), "rounds": dict(rounds.state()), "scale": scale, "curve": curve}
        report.checkpoint(done, coder.tensors(), state)
        del loss, x  # its features would be held beside those of the next step
    return _result(params, report, rounds, begun, done)


class _Run:
    """What a run begins with: from nothing, or from a checkpoint."""

    def __init__(self, coder: Coder, scale: float, step: int, curve: list[list[float]]) -> None:
        self.coder, self.scale, self.step, self.curve = coder, scale, step, curve


def _begin(params: TrainParams, rounds: Rounds, report: Report) -> _Run:
    resumed = report.resumed()
    if resumed is not None:
        rounds.restart(**{name: int(number) for name, number in resumed.state["rounds"].items()})
    rows = rounds.rows()
    coder = Coder(params, rows.shape[1], report.seed, rows.device)
    if isinstance(k := getattr(params.sparsity, "k", 1), int) and k > coder.d_sae:
        raise InvalidRequest(f"sparsity.k is {k}; expected at most the {coder.d_sae} features that there are.")
    if resumed is not None:
        coder.restore(resumed.step, resumed.tensors, resumed.state["coder"])
        return _Run(coder, float(resumed.state["scale"]), resumed.step, [list(row) for row in resumed.state["curve"]])
    scale = float(rows.norm(dim=-1).square().mean().sqrt()) if params.normalize else 1.0
    return _Run(coder, scale or 1.0, 0, [])


def _row(step: int, coder: Coder, x: "Tensor", loss: Loss) -> list[float]:
    """Step, loss, error, penalty, L0, share of the variance that is explained, p, lambda."""
    l0 = float((loss.features > 0).sum(-1).float().mean())
    left = float((x - loss.reconstruction.detach()).pow(2).sum() / (x - x.mean(0)).pow(2).sum().clamp_min(1e-12))
    annealing = coder.annealing
    p = annealing.p if annealing else 1.0
    weight = annealing.weight if annealing else float(getattr(coder.params.sparsity, "weight", 0.0))
    parts = [float(one.detach()) for one in (loss.total, loss.error, loss.penalty)]
    return [float(step), *parts, l0, 1 - left, p, weight]


_COLUMNS = ("step", "loss", "error", "penalty", "l0", "explained", "p", "weight")


def _result(params: TrainParams, report: Report, rounds: Rounds, begun: _Run, done: int) -> TrainResult:
    rows = rounds.rows()
    dictionary = begun.coder.dictionary(begun.scale, rows[: params.batch] / begun.scale, metadata(params, report, done))
    artifact = report.artifact(
        "sae",
        {name: one.cpu().contiguous() for name, one in dictionary.weights.items()},
        dictionary.config(),
        name=params.name or "sae",
    )
    warnings = []
    if done < params.steps:
        warnings.append(f"Cancelled after {done} of {params.steps} steps: this is the dictionary as it was then.")
    if rounds.epochs > 1.5:
        warnings.append(f"Each text was used {rounds.epochs:.1f} times; the paper's dictionaries saw no text twice.")
    tokens = sum(len(one) for one in rounds.corpus.sequences)
    return TrainResult(
        metrics=_metrics(dictionary, rows, min(params.batch, _CHUNK), report.seed),
        tables=(Table(name="curve", columns=_COLUMNS, rows=tuple(tuple(row) for row in begun.curve)),),
        artifacts=(artifact,),
        warnings=tuple(warnings),
        steps=done,
        tokens=int(rounds.epochs * tokens),
        epochs=rounds.epochs,
        sae=artifact,
    )


def metadata(params: TrainParams, report: Report, done: int) -> dict[str, Any]:
    """What the artifact says of itself: SAELens' own words, then ours."""
    hooks = {"resid_post": "hook_resid_post", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}
    return {
        "sae_lens_version": SAELENS_FORMAT,
        "context_size": params.context,
        "hook_name": f"blocks.{params.layer}.{hooks.get(params.site, params.site)}",
        "site": params.site,
        "layer": params.layer,
        "skip_first": params.skip_first,
        "trained_as": params.arch,
        "sparsity": params.sparsity.model_dump(),
        "variant": params.variant,
        "steps": done,
        "batch": params.batch,
        "lr": params.lr,
        "seed": report.seed,
    }


def _metrics(dictionary: Dictionary, rows: "Tensor", chunk: int, seed: int) -> tuple[Metric, ...]:
    """Of the activations of the last round, which it was trained on: `sae.eval` measures on others."""
    on, mean = torch.zeros(dictionary.d_sae, device=rows.device), rows.mean(0)
    left = l0 = variance = 0.0
    with torch.no_grad():
        for x in rows.split(chunk):  # of the round there is no room for a second one
            features = dictionary.encode(x)
            on += (features > 0).sum(0)
            l0 += float((features > 0).sum())
            left += float((x - dictionary.decode(features)).pow(2).sum())
            variance += float((x - mean).pow(2).sum())
    alive = float((on > 0).float().mean())
    of_rows = partial(Metric, n=len(rows), split="train", seed=seed)
    return (
        of_rows(name="l0", value=l0 / len(rows), unit="features"),
        of_rows(name="variance_explained", value=1 - left / max(variance, 1e-12), unit="fraction"),
        Metric(name="alive", value=alive, unit="fraction", n=dictionary.d_sae, split="train", seed=seed),
    )
