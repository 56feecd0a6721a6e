"""The logit lens: final norm and head, applied to the residual stream behind each block (nostalgebraist, 2020)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from interlace.methods.base import Metric, Report, Table
from interlace.methods.lens.spec import LensParams, LensResult
from interlace.methods.shared.head import places
from interlace.methods.shared.prompts import check_length
from interlace.methods.shared.sites import evaluating
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: LensParams, report: Report) -> LensResult:
    """Read prompts, one a forward. The last block's reading is the model's own prediction."""
    with evaluating(model) as module:
        return _read(module, model.tokenizer, params, report)


def _read(module: Any, tokenizer: Any, params: LensParams, report: Report) -> LensResult:
    blocks, norm, head = places(module)
    layers = _layers(params.layers, len(blocks))
    prompts = report.texts(params.prompts)
    if params.targets is not None and len(params.targets) != len(prompts):
        raise InvalidRequest(f"`params.targets` has {len(params.targets)} texts and `params.prompts` {len(prompts)}.")
    rows: list[tuple[Any, ...]] = []
    tokens: list[tuple[int, int, str]] = []
    sums = torch.zeros(len(layers), dtype=torch.float64)
    hits = torch.zeros(len(layers))
    read = 0
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt").input_ids.to(module.device)
        check_length(module, ids.shape[1], f"`params.prompts.{number}`")
        with torch.no_grad(), _outputs([blocks[layer] for layer in layers]) as streams:
            final = module(input_ids=ids, use_cache=False).logits[0]
        report.count(forwards=1, tokens=ids.numel())
        if params.positions == "all":
            tokens += [(number, at, tokenizer.decode([one])) for at, one in enumerate(ids[0].tolist())]
        for position in _positions(params.positions, ids.shape[1], prompt):
            target = _target(params, tokenizer, number, final[position])
            for index, layer in enumerate(layers):
                with torch.no_grad():
                    logits = final if layer == len(blocks) - 1 else head(norm(streams[index]))[0]
                log_probs = logits[position].float().log_softmax(-1)
                rows += _readings(tokenizer, log_probs, params.top, (number, position, layer), target)
                sums[index] -= (log_probs.exp() * log_probs).sum().double()
                hits[index] += int(log_probs.argmax()) == target
            read += 1
        report.progress(number + 1, len(prompts))
        if report.stopping:
            break
    stopped = () if number + 1 == len(prompts) else (f"cancelled after {number + 1} of {len(prompts)} prompts",)
    columns = ("prompt", "position", "layer", "rank", "token", "log_prob", "target", "target_rank", "target_log_prob")
    return LensResult(
        metrics=tuple(
            Metric(name=f"top1_layer_{layer}", value=float(hits[index]) / read, unit="fraction", n=read)
            for index, layer in enumerate(layers)
        ),
        tables=(
            Table(name="readings", columns=columns, rows=tuple(rows)),
            *([Table(name="tokens", columns=("prompt", "position", "token"), rows=tuple(tokens))] if tokens else []),
        ),
        warnings=stopped,
        layers=layers,
        entropy=[float(one) / read for one in sums],
    )


def _readings(
    tokenizer: Any, log_probs: Tensor, top: int, where: tuple[int, int, int], target: int
) -> Iterator[tuple[Any, ...]]:
    """A row for each of the likeliest tokens; `target_rank` is 0 for the likeliest."""
    best = log_probs.topk(min(top, log_probs.shape[-1]))
    mine = float(log_probs[target])
    told = (tokenizer.decode([target]), int((log_probs > log_probs[target]).sum()), mine)
    for rank, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        yield (*where, rank, tokenizer.decode([token]), value, *told)


def _target(params: LensParams, tokenizer: Any, number: int, last: Tensor) -> int:
    if params.targets is None:
        return int(last.argmax())
    ids = tokenizer(params.targets[number], add_special_tokens=False).input_ids
    if not ids:
        raise InvalidRequest(f"`params.targets.{number}` has no token.")
    return int(ids[0])


@contextmanager
def _outputs(blocks: list[Any]) -> Iterator[list[Tensor]]:
    """What each block gives, [batch, seq, d_model], in their order; filled by a forward."""
    found: list[Tensor] = []
    with ExitStack() as hooks:
        for block in blocks:
            handle = block.register_forward_hook(
                lambda _module, _inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
            )
            hooks.callback(handle.remove)
        yield found


def _layers(wanted: list[int] | None, count: int) -> list[int]:
    layers = list(range(count)) if wanted is None else [layer + count if layer < 0 else layer for layer in wanted]
    if strange := [layer for layer in layers if not 0 <= layer < count]:
        raise InvalidRequest(f"`params.layers` has {strange[0]}; the model's blocks are 0 to {count - 1}.")
    return sorted(set(layers))


def _positions(wanted: list[int] | Literal["all"], length: int, prompt: str) -> list[int]:
    if wanted == "all":
        return list(range(length))
    positions = [position + length if position < 0 else position for position in wanted]
    if strange := [one for one in positions if not 0 <= one < length]:
        raise InvalidRequest(f"`params.positions` has {strange[0]}; {prompt[:40]!r} has {length} tokens.")
    return positions
