"""Prompts as token ids, and where in them the subject is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interlace.protocol.errors import InvalidRequest

#: Token classes of causal tracing, in the order of a prompt.
CLASSES = ("prefix", "subject_first", "subject_middle", "subject_last", "further", "last")


@dataclass(frozen=True)
class Prompt:
    """A prompt and its subject's tokens: ``ids[first : last + 1]``."""

    text: str
    ids: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def of(cls, tokenizer: Any, text: str, subject: str, start: int | None = None) -> "Prompt":
        """As the tokenizer reads it, special tokens included.

        The subject begins at the character ``start``; without it, where it stands last in the text, so that examples
        may stand before the question. (The code of causal tracing, `find_token_range`, takes the first.)
        Raises InvalidRequest where the subject is not there, or the tokenizer does not tell where tokens are.
        """
        start = text.rfind(subject) if start is None else start
        if not subject or start < 0 or not text.startswith(subject, start):
            raise InvalidRequest(f"The subject {subject[:64]!r} is not in the prompt {text[:96]!r}.")
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidRequest(f"{type(tokenizer).__name__} does not tell where tokens are; a fast tokenizer does.")
        encoded = tokenizer(text, return_offsets_mapping=True)
        stop = start + len(subject)
        inside = [
            number
            for number, (begin, end) in enumerate(encoded["offset_mapping"])
            if begin < stop and end > start and text[begin:end].strip()
        ]
        return cls(text, tuple(encoded["input_ids"]), inside[0], inside[-1])

    @classmethod
    def filled(cls, tokenizer: Any, template: str, subject: str) -> "Prompt":
        """A template whose last `{}` is the subject's place, whatever else it has in common with the subject: as ROME's
        `get_words_idxs_in_templates`. Raises as `of` does."""
        before, _, after = template.rpartition("{}")
        return cls.of(tokenizer, before + subject + after, subject, len(before))

    def at(self, name: str) -> int:
        """A position by its name. Raises InvalidRequest for another one."""
        named = {"subject_first": self.first, "subject_last": self.last, "last": len(self.ids) - 1}
        if name not in named:
            raise InvalidRequest(f"There is no position {name[:32]!r}; there are {', '.join(named)}.")
        return named[name]

    def positions(self, name: str) -> list[int]:
        """One or more: as `at`, or ``subject``, ``not_subject`` (the last apart), ``prefix``, ``further``, ``all``."""
        last = len(self.ids) - 1
        spans: dict[str, Sequence[int]] = {
            "subject": range(self.first, self.last + 1),
            "prefix": range(self.first),
            "further": range(self.last + 1, last),
            "not_subject": [*range(self.first), *range(self.last + 1, last)],
            "before_last": range(last),
            "all": range(last + 1),
        }
        return list(spans[name]) if name in spans else [self.at(name)]

    def classes(self) -> list[str]:
        """The class of each token, of CLASSES. The end of a prompt that ends in its subject is `subject_last`."""
        names = []
        for position in range(len(self.ids)):
            if position < self.first:
                names.append("prefix")
            elif position == self.last:
                names.append("subject_last")
            elif position == self.first:
                names.append("subject_first")
            elif position < self.last:
                names.append("subject_middle")
            else:
                names.append("last" if position == len(self.ids) - 1 else "further")
        return names


def first_token(tokenizer: Any, word: str) -> int:
    """The first token of a word that goes on a text: with the space before it that most tokenizers make part of it."""
    text = word if word[:1].isspace() else f" {word}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InvalidRequest(f"{word[:64]!r} has no token.")
    return int(ids[0])


def longest(module: Any) -> int:
    """Tokens that a model was made for; as good as any number where it does not say."""
    known = (getattr(module.config, name, None) for name in ("n_positions", "max_position_embeddings"))
    return next((one for one in known if isinstance(one, int)), 1 << 20)


def check_length(module: Any, tokens: int, what: str) -> None:
    """Raises InvalidRequest for a text without tokens, and for one with more than the model was made for."""
    if tokens == 0:
        raise InvalidRequest(f"{what} has no token.")
    if tokens > (most := longest(module)):
        raise InvalidRequest(f"{what} has {tokens:,} tokens; this model reads {most:,} at most.")


def check_lengths(module: Any, prompts: Sequence[Prompt]) -> None:
    """`check_length` of each of a method's `prompts`."""
    for number, prompt in enumerate(prompts):
        check_length(module, len(prompt.ids), f"`params.prompts.{number}`")
