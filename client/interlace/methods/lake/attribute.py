"""`lake.attribute`: which of some models has most likely written texts, by how likely each finds them."""

from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.lake.spec import AttributeParams, AttributeResult
from interlace.methods.lake.texts import Reader, reading
from interlace.methods.shared import intervals
from interlace.methods.shared.prompts import check_length
from interlace.methods.shared.sites import evaluating
from interlace.protocol.errors import InvalidRequest

_MODEL = "model"


def run(model: Any, params: AttributeParams, report: Report) -> AttributeResult:
    """See `AttributeParams`. Raises InvalidRequest for fewer than two candidates, or an output without a token, or
    with more than the model reads."""
    names = [*([_MODEL] if params.include_model else []), *params.candidates]
    if len(set(names)) < max(2, len(names)):
        raise InvalidRequest("`candidates` must be two or more different ones, the hosted model among them.")
    asked = [_split(model.tokenizer, one.prompt, one.text) for one in params.outputs]
    scores: list[list[float]] = []
    with evaluating(model) as module, torch.no_grad():
        for number, (ids, _) in enumerate(asked):
            check_length(module, ids.shape[1], f"`params.outputs.{number}`, with its prompt,")
        device = next(module.parameters()).device
        for number, name in enumerate(names):
            opened = None if name == _MODEL else report.open(name)
            with reading(model, module, opened) as reader:
                scores.append(_scores(reader, asked, device, report))
            if report.stopping:
                break
            report.progress(number + 1, len(names))
    read, warnings = compared(names, scores, len(asked), "outputs")
    n = read.shape[1]
    lengths = torch.tensor([float(ids.shape[1] - start) for ids, start in asked[:n]], dtype=torch.float64)
    return _result(names[: len(read)], read, lengths, params, report.seed, warnings)


def compared(names: list[str], found: list[list[float]], of: int, what: str) -> tuple[Tensor, list[str]]:
    """[candidates, n], fp64: of each candidate the same n of all ``of``; and a warning where a cancel left some out.

    A candidate that was broken off is left out, unless it is the first: then it is all there is.
    """
    n = len(found[0])
    whole = [one for one in found if len(one) == n]
    read = torch.tensor(whole, dtype=torch.float64)
    if len(whole) == len(names) and n == of:
        return read, []
    return read, [f"Cancelled after {len(whole)} of {len(names)} candidates, on {n} of {of} {what}."]


def _split(tokenizer: Any, prompt: str, text: str) -> tuple[Tensor, int]:
    """The ids of both, and where the text's own begin. A first token after nothing cannot be judged."""
    before = tokenizer(prompt)["input_ids"] if prompt else []
    ids = tokenizer(prompt + text)["input_ids"]
    start = max(1, sum(1 for one, other in zip(before, ids, strict=False) if one == other))
    if len(ids) <= start:
        raise InvalidRequest(f"The output {text[:64]!r} has too few tokens to be judged; give more of it.")
    return torch.tensor([ids]), start


def _scores(reader: Reader, asked: list[tuple[Tensor, int]], device: torch.device, report: Report) -> list[float]:
    """Of each output, until somebody cancels."""
    scores = []
    for ids, start in asked:
        scores.append(_score(reader, ids.to(device), start))
        report.count(forwards=1, tokens=ids.shape[1])
        if report.stopping:
            break
    return scores


def _score(reader: Reader, ids: Tensor, start: int) -> float:
    """Log-probability of the output."""
    said = reader(ids)
    # To 6 digits: the last bits of a forward hang on where in memory its weights lie.
    return float(f"{float(said[start - 1 : -1].gather(-1, ids[0, start:, None]).sum()):.6g}")


def _result(
    names: list[str], scores: Tensor, lengths: Tensor, params: AttributeParams, seed: int, warnings: list[str]
) -> AttributeResult:
    """From log-probabilities [candidates, outputs]."""
    per_token = scores / lengths
    total = scores.sum(1)
    order = total.argsort(descending=True).tolist()
    posterior = total.softmax(0)
    wins = torch.bincount(scores.argmax(0), minlength=len(names))
    rows = []
    for one in order:
        nats, interval = intervals.mean((-per_token[one]).tolist())
        low, high = interval or (None, None)
        rows.append((names[one], nats, low, high, int(wins[one]), float(posterior[one])))
    margins, decided = [], False
    if len(order) > 1:
        margin, interval = margin_of(scores[order[0]] - scores[order[1]], lengths, params.resamples, seed)
        margins = [Metric(name="margin", value=margin, unit="nats/token", n=len(lengths), ci95=interval)]
        decided = interval is not None and interval[0] > 0
        if not decided:
            warnings.append(f"Undecided between {names[order[0]]} and {names[order[1]]}: give more outputs.")
    return AttributeResult(
        metrics=(
            *margins,
            Metric(name="decided", value=float(decided), n=len(lengths)),
        ),
        tables=(
            Table(
                name="candidates", columns=("candidate", "nats", "low", "high", "wins", "posterior"), rows=tuple(rows)
            ),
        ),
        warnings=tuple(warnings),
        best=names[order[0]],
    )


def margin_of(apart: Tensor, lengths: Tensor, resamples: int, seed: int) -> tuple[float, tuple[float, float] | None]:
    """The mean (nats per token), with the 95 % interval of a bootstrap over outputs; none for fewer than two."""
    value = float(apart.sum() / lengths.sum())
    if len(apart) < 2:
        return value, None
    dice = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(apart), (resamples, len(apart)), generator=dice)
    means = (apart[chosen].sum(1) / lengths[chosen].sum(1)).sort().values
    return value, (float(means[int(0.025 * resamples)]), float(means[int(0.975 * resamples)]))
