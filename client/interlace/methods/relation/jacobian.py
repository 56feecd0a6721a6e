"""The Jacobian of the answer's state in the subject's, for every layer at once."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Report
from interlace.methods.shared import capture
from interlace.methods.shared.prompts import Prompt
from interlace.methods.shared.sites import Place, Sites

_SAME = 1e-4  # of z, relative: what a cache of the tokens before the subject's last may change
_STEP = {torch.float64: 1e-3}  # of the norm of h, in a finite difference; no less: many norms are single anyhow
_COARSE_STEP = 3e-3  # below double precision


@dataclass(frozen=True)
class Tangent:
    """z as a function of h around one prompt: z(h) = z + J (h - h0) + ..."""

    #: By layer: [d_model, d_model], dz/dh.
    jacobians: dict[int, Tensor]
    #: By layer: [d_model], h at the subject's last token.
    states: dict[int, Tensor]
    #: [d_model], what the last block gives at the last token.
    answer: Tensor


def subject_places(sites: Sites, layers: Sequence[int]) -> dict[int, Place]:
    """Where h is, by layer: what a block gives, or the embeddings for -1."""
    return {layer: sites.place("embed") if layer < 0 else sites.place("resid_post", layer) for layer in layers}


class Differentiator:
    """Jacobians of prompts, as many of their rows a forward as fit into a batch."""

    def __init__(self, sites: Sites, layers: Sequence[int], batch: int, report: Report) -> None:
        self._sites = sites
        self._batch = batch
        self._report = report
        self._places = subject_places(sites, layers)
        self._last = sites.place("resid_post", sites.n_layers - 1)
        self._device = next(sites.module.parameters()).device

    def of(self, prompt: Prompt) -> Tangent:
        """Raises nothing of its own. One backward gives a row of J for each row of the batch, at all layers."""
        ids = torch.tensor([prompt.ids], device=self._device)
        with torch.no_grad(), capture.captured({"z": self._last}) as plain:
            self._forward(ids, {})
        answer = plain["z"][0, -1].detach()
        start, cache = self._cached(ids, prompt.last, answer)
        width = answer.shape[0]
        rows: dict[int, list[Tensor]] = {layer: [] for layer in self._places}
        states: dict[int, Tensor] = {}
        for first in range(0, width, self._batch):
            some = torch.arange(first, min(width, first + self._batch), device=self._device)
            batch = ids[:, start:].expand(len(some), -1)
            with torch.enable_grad(), self._rooted(), capture.captured({**self._places, "z": self._last}) as seen:
                self._forward(batch, _repeated(cache, len(some)))
                picked = seen["z"][:, -1].gather(1, some[:, None]).sum()
                streams = [seen[layer] for layer in self._places]
                found = torch.autograd.grad(picked, streams)
            self._report.count(backwards=1)
            for layer, stream, gradient in zip(self._places, streams, found, strict=True):
                rows[layer].append(gradient[:, prompt.last - start].cpu())
                states[layer] = stream[0, prompt.last - start].detach().cpu()
        return Tangent({layer: torch.cat(some) for layer, some in rows.items()}, states, answer.cpu())

    def error(self, prompt: Prompt, tangent: Tangent, layer: int) -> float:
        """J v against the central difference along a random v, relative; worth nothing below single precision."""
        state = tangent.states[layer]
        generator = torch.Generator().manual_seed(self._report.seed)
        direction = torch.randn(state.shape, generator=generator)
        step = _STEP.get(next(self._sites.module.parameters()).dtype, _COARSE_STEP)
        direction, state = direction.double() * step * state.norm() / direction.norm(), state.double()
        ids = torch.tensor([prompt.ids], device=self._device).expand(2, -1)
        positions = torch.tensor([prompt.last, prompt.last])
        values = torch.stack([state + direction, state - direction])
        patch = capture.Patch(self._places[layer], torch.arange(2), positions, values)
        with torch.no_grad(), capture.patched([patch]), capture.captured({"z": self._last}) as seen:
            self._forward(ids, {})
        up, down = seen["z"][:, -1].double().cpu()
        difference = (up - down) / 2
        gap = (tangent.jacobians[layer].double() @ direction - difference).norm()
        return float(gap / difference.norm()) if difference.any() else float(gap)

    def _cached(self, ids: Tensor, subject_last: int, answer: Tensor) -> tuple[int, Any]:
        """Where to go on from, and the cache up to there: what is before the subject's last token has no part in J.

        (0, None) for a recurrent model, and wherever a cache would change the answer.
        """
        if "attn_out" not in self._sites.names or subject_last == 0:
            return 0, None
        with torch.no_grad():
            cache = self._forward(ids[:, :subject_last], {}, use_cache=True).past_key_values
            with capture.captured({"z": self._last}) as seen:
                self._forward(ids[:, subject_last:], _repeated(cache, 1))
        gap = (seen["z"][0, -1] - answer).norm() / answer.norm()
        return (subject_last, cache) if gap < _SAME else (0, None)

    def _forward(self, ids: Tensor, more: Mapping[str, Any], use_cache: bool = False) -> Any:
        self._report.count(forwards=1, tokens=ids.numel())
        body = getattr(self._sites.module, "base_model", self._sites.module)  # without the head, which z is before
        return body(input_ids=ids, **{"use_cache": use_cache, **more})

    @contextmanager
    def _rooted(self) -> Iterator[None]:
        """The embeddings ask for gradients: the weights are frozen, and a graph must begin somewhere."""
        with ExitStack() as stack:
            root = (self._sites.place("embed"), lambda state: state.detach().requires_grad_(True))
            stack.enter_context(capture.altered([root]))
            yield


def _repeated(cache: Any, rows: int) -> dict[str, Any]:
    """A cache of one row for a forward of many, which may add to it."""
    if cache is None:
        return {}
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return {"past_key_values": copied, "use_cache": True}
