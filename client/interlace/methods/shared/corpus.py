"""Texts as token ids, cut to a context and put in batches: what a method reads a model with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interlace.methods.base import Opened, Report, Texts
from interlace.methods.shared.prompts import longest
from interlace.methods.shared.sites import unwrapped
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

#: A text without a position that is kept gives nothing to learn from.
_SHORTEST = 1


@dataclass(frozen=True)
class Corpus:
    """Texts as token ids, cut to a context, or to what the model was made for where that is less."""

    sequences: "Sequence[Tensor]"

    @classmethod
    def of(cls, report: Report, model: Any, data: Texts, context: int) -> "Corpus":
        """Texts, or an artifact of them or of token ids. Raises InvalidRequest where there is nothing in them."""
        context = min(context, longest(unwrapped(model)))
        if isinstance(data, str):
            opened = report.open(data)
            if opened.kind == "data":
                return cls.of_tokens(opened, context)
        texts = report.texts(data)
        if getattr(model, "tokenizer", None) is None:
            raise InvalidRequest("The model has no tokenizer; expected `data` to be an artifact with token ids.")
        ids = model.tokenizer(texts, truncation=True, max_length=context)["input_ids"]
        return cls(_some([torch.tensor(one, dtype=torch.long) for one in ids], "data"))

    @classmethod
    def of_tokens(cls, opened: Opened, context: int) -> "Corpus":
        """Of the tensor `tokens` of an artifact. Raises InvalidArtifact for one of another shape."""
        tokens = opened.tensors.get("tokens")
        if tokens is None or tokens.ndim != 2 or tokens.is_floating_point():
            raise InvalidArtifact(f"{opened.ref} has no tensor `tokens` of whole numbers [texts, positions].")
        rows = [row[: int((row >= 0).cumprod(0).sum())] for row in tokens[:, :context].long()]
        return cls(_some(rows, opened.ref))

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, numbers: Sequence[int]) -> "tuple[Tensor, Tensor]":
        """Token ids and which of them are a text's, both [texts, positions]; shorter texts are filled up at their end.

        What fills up comes after all that is kept, so that a causal model, and a recurrent one, does not see it.
        """
        rows = [self.sequences[number] for number in numbers]
        ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=0)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1])[None] < lengths[:, None]

    def batches(self, size: int, first: int = 0, end: int | None = None) -> "Iterator[tuple[Tensor, Tensor]]":
        """All texts in their order, from ``first`` to before ``end``."""
        end = len(self) if end is None else end
        for start in range(first, end, size):
            yield self.batch(range(start, min(start + size, end)))


def _some(rows: "list[Tensor]", name: str) -> "list[Tensor]":
    kept = [row for row in rows if len(row) >= _SHORTEST]
    if not kept:
        raise InvalidRequest(f"There are no tokens in {name}.")
    return kept
