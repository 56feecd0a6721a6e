"""The hosted model as this method runs it: token ids in, logits out, each pass counted.

Rows of different length share a pass padded on the right, where no causal model looks: neither attention nor a
recurrence sees what comes after. So padding changes nothing, in any family, and no mask is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Report
from interlace.protocol.errors import InvalidRequest

Row = Sequence[int]


@dataclass(frozen=True)
class Language:
    """A causal language model, its tokenizer, and who counts what it does."""

    module: Any
    tokenizer: Any
    report: Report
    #: What the tokenizer puts before every text, such as a BOS token; often nothing.
    start: tuple[int, ...]
    #: The most tokens of a row; None where the model has no bound.
    positions: int | None

    @classmethod
    def of(cls, model: Any, report: Report) -> "Language":
        """Of a local, dispatched nnsight model. Raises InvalidRequest where it is no causal language model."""
        module, tokenizer = model._module, getattr(model, "tokenizer", None)
        writes = getattr(module, "can_generate", bool)()
        if tokenizer is None or not writes or module.config.is_encoder_decoder:
            raise InvalidRequest(
                f"`model` is a {type(module).__name__}; this method takes a causal language model with a tokenizer."
            )
        config = module.config.get_text_config()
        bounds = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
        positions = min((bound for bound in bounds if isinstance(bound, int)), default=None)
        # Of a text's ids, those that come before it: some tokenizers put something after it, too.
        ids, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        return cls(module, tokenizer, report, tuple(ids[: _offset(ids, bare)]), positions)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with nothing before or after."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Row) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def logits(self, rows: Sequence[Row], *, backward: bool = False, start: bool = True) -> Tensor:
        """Logits [rows, longest row, vocabulary] of what follows each token; with gradients, or none."""
        return self._run(self._padded(rows, start), backward)["logits"][:, len(self.start) if start else 0 :]

    def states(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states [layers + 1, rows, width] at each row's last token; 0 is the embedding."""
        out = self._run(self._padded(rows, True), False, output_hidden_states=True)
        at = torch.tensor([len(self.start) + len(row) - 1 for row in rows], device=out["logits"].device)
        picked = [layer[torch.arange(len(rows), device=layer.device), at] for layer in out["hidden_states"]]
        return torch.stack(picked).float().cpu()

    def follow(self, rows: Sequence[Row], cache: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Log-probabilities [rows, vocabulary], in float64, of what follows rows of one length; what to go on with."""
        ids = self._padded(rows, cache is None)
        out = self._run(ids, False, use_cache=True, **(cache or {}))
        kept = {name: out[name] for name in ("past_key_values", "cache_params") if out.get(name) is not None}
        return out["logits"][:, -1].double().log_softmax(-1), kept

    def check_room(self, needed: int, what: str) -> None:
        """Raises InvalidRequest where a row of so many tokens has no place in the model."""
        if self.positions is not None and needed > self.positions:
            raise InvalidRequest(f"{what} needs rows of {needed} tokens; the model takes at most {self.positions}.")

    def _padded(self, rows: Sequence[Row], start: bool) -> Tensor:
        first = list(self.start) if start else []
        longest = max(len(row) for row in rows)
        ids = [[*first, *row, *([0] * (longest - len(row)))] for row in rows]
        return torch.tensor(ids, device=next(self.module.parameters()).device)

    def _run(self, ids: Tensor, backward: bool, **options: Any) -> Any:
        self.report.count(forwards=1, backwards=int(backward), tokens=ids.numel())
        with torch.set_grad_enabled(backward):
            return self.module(input_ids=ids, **{"use_cache": False, **options})


def batches(rows: Sequence[Any], size: int) -> list[list[int]]:
    """Indices of rows, so many at once, in order."""
    return [list(range(at, min(at + size, len(rows)))) for at in range(0, len(rows), size)]


def by_length(rows: Sequence[Row], size: int) -> list[list[int]]:
    """Indices of rows that have one length, so many at once: for passes that cannot be padded."""
    lengths: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(index)
    return [group[at : at + size] for group in lengths.values() for at in range(0, len(group), size)]


def _offset(ids: Row, bare: Row) -> int:
    for at in range(len(ids) - len(bare) + 1):
        if list(ids[at : at + len(bare)]) == list(bare):
            return at
    return 0
