"""Pairs of prompts, and what both of the family's methods say of components."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from interlace.methods.base import Params

Layers = Annotated[list[int], Field(min_length=1)]
_TOKENS_A_CHARACTER = 0.4


class Pair(Params):
    """Two prompts of one number of tokens, each with what the model should say."""

    base: Annotated[str, Field(min_length=1, max_length=4000)]
    source: Annotated[str, Field(min_length=1, max_length=4000)]
    answer: Annotated[str, Field(min_length=1, max_length=200)]
    """To the base; only its first token counts."""
    source_answer: Annotated[str, Field(min_length=1, max_length=200)]


class Heads(Params):
    """Attention heads: what each brings to its block's output projection, at all tokens."""

    family: Literal["heads"]
    layers: Layers | None = None


def tokens_of(pairs: Sequence[Pair]) -> int:
    """Of the longest prompt, about."""
    return int(max(_TOKENS_A_CHARACTER * max(len(one.base), len(one.source)) for one in pairs)) + 1
