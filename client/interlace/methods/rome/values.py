"""What an edit writes: the value at the subject's last token under which the model says the new object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Report
from interlace.methods.rome.keys import given_by, read_by
from interlace.methods.rome.spec import Request, RomeParams
from interlace.methods.shared import capture
from interlace.methods.shared.prompts import Prompt, check_length
from interlace.methods.shared.sites import Projection


@dataclass(frozen=True)
class Found:
    """The key and the change of the value, of one request."""

    #: Mean over the contexts, and that of the bare prompt: [d_in].
    key: Tensor
    bare_key: Tensor
    #: [d_out]
    delta: Tensor
    #: |v| of the bare prompt.
    norm: float
    #: (step, loss, nll, kl, mean probability of the new object) of each step.
    curve: tuple[tuple[int, float, float, float, float], ...]


@dataclass(frozen=True)
class _Rows:
    """Contexts with the new object behind them, and the essence prompt last: padded on the right."""

    #: [rows, tokens]
    ids: Tensor
    #: Of the subject's last token, of each row: [rows].
    subjects: Tensor
    #: What the model must say: rows, positions before each token, tokens.
    targets: tuple[Tensor, Tensor, Tensor]
    #: The last token of the essence prompt, which is the last row.
    essence: int


def found(
    module: nn.Module,
    tokenizer: Any,
    projection: Projection,
    request: Request,
    prefixes: Sequence[str],
    params: RomeParams,
    report: Report,
) -> Found:
    """Optimise the value of one request (Meng et al. 2022, equation 4)."""
    rows = _rows(tokenizer, request, prefixes)
    device = next(module.parameters()).device
    ids = rows.ids.to(device)
    check_length(module, ids.shape[1], "A prompt with its subject, its prefix and `target_new`")
    every = torch.arange(len(ids), device=device)
    subjects = rows.subjects.to(device)
    with torch.no_grad(), capture.captured({0: read_by(projection), 1: given_by(projection)}) as states:
        before = module(input_ids=ids, use_cache=False).logits[-1, rows.essence].float().log_softmax(-1)
    keys, value = states[0][every, subjects].float(), states[1][0, subjects[0]].float()
    report.count(forwards=1, tokens=ids.numel())
    delta = torch.zeros_like(value, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=params.lr)
    curve: list[tuple[int, float, float, float, float]] = []
    norm = value.norm()

    def moved(state: Tensor) -> Tensor:
        added = torch.zeros_like(state, dtype=torch.float32).index_put((every, subjects), delta.expand(len(ids), -1))
        return (state + added).to(state.dtype)

    for step in range(params.steps):
        with torch.enable_grad(), capture.altered([(given_by(projection), moved)]):
            logprobs = module(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            nll = -_mean_by_row(logprobs, rows)
            after = logprobs[-1, rows.essence]
            # KL(after || before), as equation 4 and the reference code have it: torch's first argument is the second.
            kl = torch.nn.functional.kl_div(before, after, log_target=True, reduction="sum")
            loss = nll.mean() + params.kl * kl + params.decay * delta.norm() / norm**2
        report.count(forwards=1, tokens=ids.numel())
        told = [float(one.detach()) for one in (loss, nll.mean(), kl, (-nll).exp().mean())]
        curve.append((step, told[0], told[1], told[2], told[3]))
        if curve[-1][1] < params.enough or step == params.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimiser.step()
        report.count(backwards=1)
        with torch.no_grad():
            delta *= (params.clamp * norm / delta.norm().clamp_min(1e-12)).clamp(max=1.0)
    return Found(keys[:-1].mean(0).cpu(), keys[0].cpu(), delta.detach().cpu(), float(norm), tuple(curve))


def _rows(tokenizer: Any, request: Request, prefixes: Sequence[str]) -> _Rows:
    wordings = [request.prompt, *request.contexts, *(f"{prefix} {request.prompt}" for prefix in prefixes)]
    prompts = [Prompt.filled(tokenizer, wording, request.subject) for wording in [*wordings, "{} is a"]]
    target = tokenizer(f" {request.target_new.strip()}", add_special_tokens=False)["input_ids"]
    ids = [[*prompt.ids, *target[:-1]] for prompt in prompts[:-1]] + [list(prompts[-1].ids)]
    numbers, places, tokens = [], [], []
    for row, prompt in enumerate(prompts[:-1]):
        for offset, token in enumerate(target):
            numbers.append(row)
            places.append(len(prompt.ids) - 1 + offset)
            tokens.append(token)
    return _Rows(
        capture.right_padded(ids),
        torch.tensor([prompt.last for prompt in prompts]),
        (torch.tensor(numbers), torch.tensor(places), torch.tensor(tokens)),
        len(prompts[-1].ids) - 1,
    )


def _mean_by_row(logprobs: Tensor, rows: _Rows) -> Tensor:
    """Mean log probability of the new object's tokens after each context: [contexts]."""
    numbers, places, tokens = (one.to(logprobs.device) for one in rows.targets)
    return logprobs[numbers, places, tokens].reshape(len(rows.ids) - 1, -1).mean(-1)


def sampled_prefixes(module: nn.Module, tokenizer: Any, params: RomeParams, report: Report) -> list[str]:
    """Texts that the model samples from nothing, as contexts: `sampled` of the params."""
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(report.seed)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts: list[str] = []
    for n, length in params.sampled:
        ids = torch.full((n, 1), 0 if start is None else start)
        for _ in range(length if n else 0):
            with torch.no_grad():
                logits = capture.last_logits(module, ids.to(device)).float().cpu()
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=generator)], -1)
            report.count(forwards=1, tokens=ids.numel())
        # As the reference code has it: a sentence of its own before the prompt.
        texts += [f"{tokenizer.decode(row[1:], skip_special_tokens=True).strip()}." for row in ids]
    return texts
