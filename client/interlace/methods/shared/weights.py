"""A model's weights as matrices that can be set beside another's: whole, with edits, or as linear sketches.

The sketch of W [m, n] is S = W G, with G [n, 64] of normal numbers over 8 that every sketch of such a matrix shares: so
S - S' is the sketch of W - W', has its norm (to some percent) and, up to 64, its rank (Halko, Martinsson & Tropp 2011).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Opened
from interlace.methods.shared.edits import deltas, read
from interlace.methods.shared.sites import unwrapped
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

WIDTH = 64  # columns of a sketch
_LEAST = 8  # rows and columns of a matrix that is looked at
_SAMPLE = 4096  # numbers of a matrix among which distinct ones are counted
_FORMAT = 1
#: What is told of a matrix beside its sketch: kurtosis, share of distinct numbers.
_FACTS = ("kurtosis", "distinct")
#: Heads, whose rows are classes and so no hidden units in any order.
_HEADS = ("lm_head", "embed_out", "classifier", "score")


@dataclass(frozen=True)
class Matrix:
    """One weight of one model, or what stands for it."""

    #: [m, n], or where only that is known None.
    whole: Tensor | None
    #: [m, 64]
    sketch: Tensor
    #: The largest singular values, up to 64 of them.
    spectrum: Tensor
    #: Of its numbers, over 3 of normal ones.
    kurtosis: float
    #: Of a sample of its numbers: how many are distinct. A quantised matrix has few.
    distinct: float

    @classmethod
    def of(cls, name: str, weight: Tensor) -> "Matrix":
        whole = weight.detach().reshape(weight.shape[0], -1).to(torch.float32)
        flat = whole.reshape(-1)
        centred = flat - flat.mean()
        variance = centred.square().mean().clamp_min(1e-30)
        sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]
        return cls(
            whole=whole,
            sketch=whole @ _directions(name, whole.shape[1]),
            spectrum=torch.linalg.svdvals(whole)[:WIDTH],
            kurtosis=float(centred.pow(4).mean() / variance.square() - 3),
            distinct=sample.unique().numel() / sample.numel(),
        )


@dataclass(frozen=True)
class Weights:
    """One model's matrices, read one at a time."""

    name: str
    #: The matrix of a parameter; None where it has none of this shape.
    matrix: Callable[[str], Matrix | None]


def names_of(model: Any) -> list[str]:
    """The parameters that are compared: weights of linear and convolution modules between embeddings and heads."""
    module = unwrapped(model)
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    found = []
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None)
        is_head = part is head or path.rpartition(".")[2] in _HEADS
        if is_head or isinstance(part, nn.Embedding) or not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            continue
        if min(weight.shape[0], weight[0].numel()) >= _LEAST:
            found.append(f"{path}.weight")
    if not found:
        raise InvalidRequest(f"{type(module).__name__} has no weights of {_LEAST} rows and columns that are compared.")
    return found


def hosted(model: Any, name: str = "model") -> Weights:
    """The model itself."""
    parameters = dict(unwrapped(model).named_parameters())
    return Weights(name, lambda path: Matrix.of(path, parameters[path]))


def of_artifact(model: Any, opened: Opened) -> Weights:
    """A checkpoint, a sketch, or what an edit or an adapter makes of the model. Raises InvalidArtifact."""
    parameters = dict(unwrapped(model).named_parameters())
    if opened.kind == "sketch":
        return Weights(opened.ref, _of_sketch(opened, parameters))
    if opened.kind == "weights":
        tensors = checkpoint(model, opened)
        return Weights(opened.ref, lambda path: Matrix.of(path, tensors[path]) if path in tensors else None)
    more = deltas(model, read(model, [opened]))

    def edited(path: str) -> Matrix:
        weight = parameters[path].detach().to(torch.float32)
        return Matrix.of(path, weight + more[path] if path in more else weight)

    return Weights(opened.ref, edited)


def checkpoint(model: Any, opened: Opened) -> dict[str, Tensor]:
    """A checkpoint's tensors under the model's own names, where they fit. Raises InvalidArtifact where none does."""
    module = unwrapped(model)
    prefix = getattr(module, "base_model_prefix", "")
    found = {}
    for path, parameter in module.named_parameters():
        for name in (path, path.removeprefix(f"{prefix}."), f"{prefix}.{path}"):
            tensor = opened.tensors.get(name)
            if tensor is not None and tensor.shape == parameter.shape:
                found[path] = tensor
                break
    if not found:
        raise InvalidArtifact(
            f"{opened.ref} has no tensor that fits {type(module).__name__}: it must be a checkpoint of the same "
            "architecture."
        )
    return found


def packed(weights: Weights, names: Sequence[str], **more: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of an artifact of the kind `sketch`."""
    tensors, facts = {}, {}
    for name in names:
        matrix = weights.matrix(name)
        assert matrix is not None
        tensors[f"{name}.sketch"], tensors[f"{name}.spectrum"] = matrix.sketch, matrix.spectrum
        facts[name] = {"kurtosis": matrix.kurtosis, "distinct": matrix.distinct}
    return tensors, {**more, "format": _FORMAT, "width": WIDTH, "matrices": facts}


def _of_sketch(opened: Opened, parameters: Mapping[str, Tensor]) -> Callable[[str], Matrix | None]:
    facts = opened.config.get("matrices")
    if opened.config.get("format") != _FORMAT or opened.config.get("width") != WIDTH or not isinstance(facts, Mapping):
        raise InvalidArtifact(f"{opened.ref} is no sketch of format {_FORMAT}, as `lake.sketch` makes them.")

    def matrix(path: str) -> Matrix | None:
        sketch, spectrum = (opened.tensors.get(f"{path}.{part}") for part in ("sketch", "spectrum"))
        said = facts.get(path)
        rows = parameters[path].shape[0]
        if sketch is None or spectrum is None or not isinstance(said, Mapping) or sketch.shape != (rows, WIDTH):
            return None
        kurtosis, distinct = (float(said.get(name, 0.0)) for name in _FACTS)
        return Matrix(None, sketch.float(), spectrum.float(), kurtosis, distinct)

    return matrix


def _directions(name: str, width: int) -> Tensor:
    """[n, 64]: the same for every matrix of this name and width."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}:{width}".encode()))
    return torch.randn(width, WIDTH, generator=generator) / WIDTH**0.5


def energy_rank(differences: Tensor, share: float = 0.99) -> Tensor:
    """How many directions hold a share of the squared norm of each matrix [..., m, k]; 0 for one of zeros."""
    energy = torch.linalg.eigvalsh((differences.mT @ differences).double()).flip(-1).clamp_min(0)
    total = energy.sum(-1, keepdim=True)
    rank = (energy.cumsum(-1) < share * total).sum(-1) + 1
    return torch.where(total[..., 0] > 1e-20, rank, torch.zeros_like(rank))
