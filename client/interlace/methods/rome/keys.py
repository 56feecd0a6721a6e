"""Where an edit acts: the keys of a subject, and the covariance of all keys."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Opened, Report
from interlace.methods.shared import capture
from interlace.methods.shared.prompts import longest
from interlace.methods.shared.sites import Place, Projection
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

_LONGEST = 512  # tokens of one text; what is longer goes in pieces
_WIDEST = 4096  # of which the condition number is computed


@dataclass(frozen=True)
class Covariance:
    """E[k k^T] of what a projection reads, over the tokens of a corpus."""

    #: [d_in, d_in], fp64.
    matrix: Tensor
    tokens: int
    #: SHA-256 of the texts.
    corpus: str

    @classmethod
    def of(cls, opened: Opened, site: str, layer: int, d_in: int) -> "Covariance":
        """Of an artifact. Raises InvalidArtifact for one of another site."""
        matrix, config = opened.tensors.get("covariance"), opened.config
        if (
            matrix is None
            or tuple(matrix.shape) != (d_in, d_in)
            or (config.get("site"), config.get("layer")) != (site, layer)
        ):
            raise InvalidArtifact(f"{opened.ref} is no covariance of {d_in} keys of {site} of layer {layer}.")
        return cls(matrix.double(), int(config.get("tokens", 0)), str(config.get("corpus", "")))

    def solved(self, key: Tensor, ridge: float) -> tuple[Tensor, float | None]:
        """(C + ridge mean(diag C) I)^-1 k in fp64, and the condition number of what was inverted."""
        shift = ridge * self.matrix.diagonal().mean()
        matrix = self.matrix + shift * torch.eye(len(self.matrix), dtype=torch.float64)
        condition = None
        if len(matrix) <= _WIDEST:
            values = torch.linalg.eigvalsh(matrix)
            condition = float(values[-1] / values[0].clamp_min(1e-300))
        return torch.linalg.solve(matrix, key.double()), condition


def read_by(projection: Projection) -> Place:
    """What the projection reads: the keys."""
    return Place("key", None, projection.path, projection.module, "input")


def given_by(projection: Projection) -> Place:
    """What it gives: the values."""
    return Place("value", None, projection.path, projection.module, "output", projection.part)


def covariance(
    module: nn.Module,
    tokenizer: Any,
    projection: Projection,
    texts: Sequence[str],
    most: int,
    batch: int,
    report: Report,
) -> Covariance:
    """Over the first ``most`` tokens of the texts, summed in fp64."""
    total = torch.zeros(projection.d_in, projection.d_in, dtype=torch.float64)
    size = min(_LONGEST, longest(module))
    pieces: list[list[int]] = []
    left = most
    for text in texts:
        ids = tokenizer(text)["input_ids"][:left]
        left -= len(ids)
        pieces += [ids[start : start + size] for start in range(0, len(ids), size)]
        if not left:
            break
    seen = 0
    device = next(module.parameters()).device
    for number, (_, ids) in enumerate(capture.by_length(pieces, max(1, batch * 16 // size))):
        with torch.no_grad(), capture.captured({"key": read_by(projection)}) as states:
            capture.last_logits(module, ids.to(device))
        keys = states["key"].reshape(-1, projection.d_in).double().cpu()
        total += keys.mT @ keys
        seen += len(keys)
        report.count(forwards=1, tokens=ids.numel())
        report.progress(number + 1, cov_tokens=float(seen))
    if not seen:
        raise InvalidRequest("There is no token in `params.texts`: the covariance of the keys is of what they hold.")
    corpus = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return Covariance(total / seen, seen, corpus)
