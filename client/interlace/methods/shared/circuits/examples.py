"""What circuits are asked about, as parameters: examples, a metric of a closed grammar, dictionaries. Without torch."""

from typing import Annotated, Literal

from pydantic import Field

from interlace.methods.base import ArtifactName, Params

#: `logit_diff`: logit(answer) - logit(patch_answer) at the last token. `logprob`: of the answer after the last token,
#: nats; `neg_logprob` is its negative. `probe_logit`: what a probe of a text's class says for the answer, minus that
#: for patch_answer where there is one.
MetricName = Literal["logit_diff", "logprob", "neg_logprob", "probe_logit"]
UNITS = {"logit_diff": "logits", "logprob": "nats", "neg_logprob": "nats", "probe_logit": "logits"}


class Example(Params):
    """A prompt and what m asks of it; beside it another one, whose values are patched in."""

    clean: Annotated[str, Field(min_length=1, max_length=8000)]
    patch: Annotated[str, Field(min_length=1, max_length=8000)] | None = None
    """Of as many tokens. None: what is patched in is 0, an ablation."""
    answer: Annotated[str, Field(min_length=1, max_length=200)]
    """Only its first token counts; of `probe_logit` it is a class of the probe's."""
    patch_answer: Annotated[str, Field(min_length=1, max_length=200)] | None = None


Examples = Annotated[list[Example], Field(min_length=1, max_length=5000)]


class SaeAt(Params):
    """A dictionary, with its place where it is not the one that it says it was trained at."""

    sae: ArtifactName
    site: Annotated[str, Field(max_length=32)] | None = None
    layer: Annotated[int, Field(ge=0)] | None = None


#: Dictionaries of a splice: artifacts of kind `sae`; `TAKES_SAES` is for `Spec.takes` where the field is `saes`.
Saes = Annotated[list[SaeAt | ArtifactName], Field(min_length=1, max_length=24)] | ArtifactName
TAKES_SAES = {"saes": ("sae",), "saes.sae": ("sae",)}


class Probing(Params):
    """The head of `probe_logit`: a probe that `probe.train` made with `target.kind: label`, or one like it."""

    probe: ArtifactName
    layer: Annotated[int, Field(ge=0)] | None = None
    """Which of its layers; may be left out where it has one."""


def saes_of(saes: list[SaeAt | str] | str) -> list[SaeAt]:
    """Each as an object."""
    listed = [saes] if isinstance(saes, str) else saes
    return [SaeAt(sae=one) if isinstance(one, str) else one for one in listed]


def tokens_of(examples: list[Example]) -> int:
    """A guess of the tokens of the longest prompt, for an estimate of costs."""
    return int(0.4 * max(len(text) for one in examples for text in (one.clean, one.patch or ""))) + 2
