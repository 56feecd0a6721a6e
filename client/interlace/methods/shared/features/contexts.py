"""What features of dictionaries do on texts: where they are strongest, how often they are on, what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from interlace.methods.base import Report
from interlace.methods.shared.capture import captured
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.described import Context, Description, Reading
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.head import direct_effect, places
from interlace.methods.shared.sites import Place, Sites, evaluating, first_of
from interlace.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

#: Sites whose state is added to the residual stream as it is, so that a feature has a direct path to the logits.
DIRECT = ("resid_post", "embed", "attn_out", "mlp_out", "mixer_out")
_REFERENCES = 64  # states that the last norm's derivative is averaged over


@dataclass(frozen=True)
class Watched:
    """Some features of the dictionary of one place."""

    place: Place
    dictionary: Dictionary
    features: Sequence[int]

    def __post_init__(self) -> None:
        if strange := [one for one in self.features if not 0 <= one < self.dictionary.d_sae]:
            raise InvalidRequest(
                f"There is no feature {strange[0]} at {self.place.site}; the dictionary there has 0 to "
                f"{self.dictionary.d_sae - 1}."
            )


@dataclass(frozen=True)
class _Found:
    """Where a feature is strongest in a text."""

    value: float
    text: int
    position: int
    #: The feature over the text.
    values: "Tensor"
    #: The text's tokens up to there.
    start: "Tensor"


@dataclass
class _Seen:
    """What is known of one feature so far."""

    n: int = 0
    #: Its values where it is on.
    on: "list[Tensor]" = field(default_factory=list)
    #: The strongest first.
    best: "list[_Found]" = field(default_factory=list)

    def add(self, first: int, ids: "Tensor", values: "Tensor", kept: "Tensor", k: int) -> None:
        """Values of a batch of texts, [texts, positions], of which the first is number ``first``.

        Of texts that begin the same up to where the feature is strongest, only the first counts.
        """
        self.n += int(kept.sum())
        self.on.append(values[kept & (values > 0)])
        tops = values.masked_fill(~kept, 0).max(1)
        least = self.best[-1].value if len(self.best) == k else 0.0
        for row in (tops.values > least).nonzero().flatten().tolist():
            position = int(tops.indices[row])
            start = ids[row, : position + 1]
            if any(len(start) == len(one.start) and bool((start == one.start).all()) for one in self.best):
                continue
            length = int(kept[row].nonzero().max()) + 1
            value = float(tops.values[row])
            self.best.append(_Found(value, first + row, position, values[row, :length].clone(), start.clone()))
        self.best = sorted(self.best, key=lambda one: (-one.value, one.text))[:k]


def described(
    sites: Sites,
    tokenizer: Any,
    watched: Sequence[Watched],
    corpus: Corpus,
    report: Report,
    reading: Reading,
    *,
    model_batch: int,
    skip_first: int,
) -> list[Description]:
    """Each watched feature as the texts show it, in the order given; one forward of the model a batch.

    A model that is cancelled meanwhile gives what was seen by then.
    """
    seen = {(number, one): _Seen() for number, some in enumerate(watched) for one in some.features}
    references: list[Tensor] = []
    read = 0
    for ids, mask in corpus.batches(model_batch):
        kept = mask.clone()
        kept[:, :skip_first] = False
        states, last = _states(sites, {number: one.place for number, one in enumerate(watched)}, ids, report)
        if sum(map(len, references)) < _REFERENCES:
            references.append(last[kept.to(last.device)].float())
        for number, some in enumerate(watched):
            values = some.dictionary.encode(states[number])[..., list(some.features)].float().cpu()
            for column, feature in enumerate(some.features):
                seen[number, feature].add(read, ids, values[..., column], kept, reading.k)
        read += len(ids)
        report.progress(read, len(corpus))
        if report.stopping:
            break
    said = _said(sites, tokenizer, watched, torch.cat(references)[:_REFERENCES], reading.logits)
    return [
        _description(some, feature, seen[number, feature], corpus, tokenizer, reading, said[number].get(feature))
        for number, some in enumerate(watched)
        for feature in some.features
    ]


def directions(dictionary: Dictionary, features: Sequence[int]) -> "Tensor":
    """What one unit of each feature adds to the state, [features, d_in]."""
    rows = dictionary.weights["W_dec"][list(features)]
    return rows / rows.norm(dim=-1, keepdim=True) if dictionary.is_rescaled else rows


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Tokens as they stand in their text, with the space before a word that some tokenizers add between tokens."""
    if tokenizer is None:
        return [f" {token}" for token in tokens]
    found = []
    for number, token in enumerate(tokens):
        alone = str(tokenizer.decode([token]))
        if number:
            before = str(tokenizer.decode([tokens[number - 1]]))
            both = str(tokenizer.decode([tokens[number - 1], token]))
            alone = both[len(before) :] if both.startswith(before) else alone
        found.append(alone)
    return found


def token_text(tokenizer: Any, token: int) -> str:
    """A token as a person reads it; its number for a model without a tokenizer."""
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def _states(
    sites: Sites, where: Mapping[int, Place], ids: "Tensor", report: Report
) -> "tuple[dict[int, Tensor], Tensor]":
    """What is at the places, and what the last block gives."""
    device = next(sites.module.parameters()).device
    report.count(forwards=1, tokens=ids.numel())
    last: list[Tensor] = []
    handle = places(sites.module)[0][-1].register_forward_hook(lambda _, __, given: last.append(first_of(given)))
    try:
        with torch.no_grad(), evaluating(sites.module) as module, captured(where) as states:
            ids = ids.to(device)
            # A mask of ones: what fills up a text comes after it, where a causal model does not look.
            module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        handle.remove()
    return states, last[0]


Said = tuple[list[tuple[str, float]], list[tuple[str, float]]]


def _said(
    sites: Sites, tokenizer: Any, watched: Sequence[Watched], states: "Tensor", count: int
) -> list[dict[int, Said]]:
    """By place and feature: the tokens that it raises and lowers most; none where it does not write to the stream."""
    found: list[dict[int, Said]] = []
    for some in watched:
        found.append({})
        if not count or not len(states) or some.place.site not in DIRECT or not some.features:
            continue
        rows = directions(some.dictionary, some.features).to(states.device)
        for feature, effect in zip(some.features, direct_effect(sites.module, states, rows), strict=True):
            most = min(count, len(effect))
            up, down = effect.topk(most), (-effect).topk(most)
            found[-1][feature] = (
                [(token_text(tokenizer, int(one)), float(effect[one])) for one in up.indices],
                [(token_text(tokenizer, int(one)), float(effect[one])) for one in down.indices],
            )
    return found


def _description(
    some: Watched, feature: int, seen: _Seen, corpus: Corpus, tokenizer: Any, reading: Reading, said: Said | None
) -> Description:
    on = torch.cat(seen.on) if seen.on else torch.zeros(0)
    most = float(on.max()) if len(on) else 0.0
    counts = torch.histc(on, reading.bins, 0.0, most).long().tolist() if len(on) else [0] * reading.bins
    return Description(
        site=some.place.site,
        layer=some.place.layer,
        feature=feature,
        n=seen.n,
        fires=len(on) / max(1, seen.n),
        most=most,
        mean=float(on.mean()) if len(on) else 0.0,
        contexts=tuple(_context(one, corpus, tokenizer, reading) for one in seen.best),
        promoted=tuple(said[0]) if said else (),
        suppressed=tuple(said[1]) if said else (),
        edges=tuple(most * number / reading.bins for number in range(reading.bins + 1)),
        counts=tuple(counts),
    )


def _context(found: _Found, corpus: Corpus, tokenizer: Any, reading: Reading) -> Context:
    start = max(0, found.position - reading.before)
    stop = min(len(found.values), found.position + reading.after + 1)
    tokens = corpus.sequences[found.text][start:stop].tolist()
    return Context(
        text=found.text,
        position=found.position,
        at=found.position - start,
        tokens=tuple(token_texts(tokenizer, tokens)),
        activations=tuple(found.values[start:stop].tolist()),
    )
