"""What the three methods begin with: dictionaries spliced in, examples in batches, the number m."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Report
from interlace.methods.circuit.spec import Asking
from interlace.methods.shared.circuits.attribution import Attributor, Batch, batches
from interlace.methods.shared.circuits.circuit import shown_tokens
from interlace.methods.shared.circuits.examples import MetricName, saes_of
from interlace.methods.shared.circuits.metrics import measure
from interlace.methods.shared.circuits.splice import Splice


@dataclass(frozen=True)
class Asked:
    """Ready to run, in `evaluating(model)`."""

    splice: Splice
    attributor: Attributor
    batches: list[Batch]
    #: Tokens of every example; None where they differ.
    length: int | None
    #: Of the first example, where all have as many.
    tokens: list[str]

    @classmethod
    def of(cls, model: Any, params: Asking, metric: MetricName, report: Report) -> "Asked":
        """Raises InvalidRequest, InvalidArtifact."""
        opened = [(report.open(one.sae, "sae"), one.site, one.layer) for one in saes_of(params.saes)]
        splice = Splice.open(model, opened)
        tokenizer = model.tokenizer
        m = measure(metric, splice.sites, tokenizer, params.data, report, params.head)
        groups = list(batches(tokenizer, params.data, params.batch))
        lengths = {one.clean.shape[1] for one in groups}
        length = lengths.pop() if len(lengths) == 1 else None
        first = next(one for one in groups if 0 in one.numbers)
        ids = first.clean[first.numbers.index(0)].tolist()
        return cls(splice, Attributor(splice, m), groups, length, shown_tokens(tokenizer, ids) if length else [])

    def measured(self, side: str = "clean") -> Tensor:
        """m of each example as the model is, [examples], double; ``patch`` of the patch prompts."""
        found = torch.empty(sum(len(one.numbers) for one in self.batches), dtype=torch.float64)
        for batch in self.batches:
            found[batch.numbers] = self.attributor.measure(getattr(batch, side), batch.numbers).double().cpu()
        return found
