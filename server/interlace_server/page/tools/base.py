"""What a tool of the Playground is: a form, the method that it runs, what it draws of the result, the code to copy."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from interlace.methods.base import Result
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.method import Envelope
from interlace_server.page.svg import Figure
from interlace_state.models import ModelCard

Form = Mapping[str, str]
#: Parameters of a method, as JSON has them.
Asked = dict[str, Any]
_WIDTH = 88  # characters of a line of code


@dataclass(frozen=True)
class Field:
    """One field of a form."""

    name: str
    label: str
    #: What it is for, in a sentence.
    hint: str = ""
    kind: Literal["line", "text", "number", "choice"] = "line"
    #: What stands in it first.
    value: str = ""
    required: bool = True
    least: float | None = None
    most: float | None = None
    step: str = "any"
    #: Of a choice: what the lake is asked for.
    finds: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures of a result in a row, or behind a slider."""

    title: str
    #: Their numbers in the result, and what stands below each.
    pictures: Sequence[tuple[int, str]]
    #: What the slider is called; None for a row.
    slider: str | None = None


@dataclass(frozen=True)
class Drawn:
    """What a tool makes of a result."""

    #: The finding, in a sentence.
    says: str
    figures: Sequence[Figure] = ()
    strips: Sequence[Strip] = ()
    #: Labels and texts that the model wrote.
    texts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Extra:
    """What a tool may want beside a result: an artifact's tensors [rows, columns] by name, and its configuration."""

    grids: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tool:
    """One way to look into a model."""

    name: str
    title: str
    #: What it is, for somebody who has never heard of it.
    lead: str
    method: str
    fields: Sequence[Field]
    #: The form as the method's parameters, and back. The first raises InvalidRequest.
    asked: Callable[[Form], Asked]
    form: Callable[[Asked], dict[str, str]]
    drawn: Callable[[Any, Asked, Extra], Drawn]
    #: The same in nnsight's words, or None for a model whose modules are not known by name.
    trace: Callable[[ModelCard, Asked, int], str | None]
    #: Fills in what the form left empty, of parameters for a model.
    completed: Callable[[Asked, ModelCard], Asked] = lambda asked, card: asked
    wrapper: str = "TransformersModel"
    #: Which kind of artifact of the result is read for the drawing.
    reads: str = ""


def text(form: Form, name: str, label: str) -> str:
    """A field that must have something in it, as it was typed. Raises InvalidRequest."""
    found = form.get(name, "")
    if not found.strip():
        raise InvalidRequest(f"“{label}” is empty.")
    return found.replace("\r\n", "\n")


def lines(form: Form, name: str, label: str) -> list[str]:
    """A text a line. Raises InvalidRequest."""
    return [one.strip() for one in text(form, name, label).split("\n") if one.strip()]


def whole(form: Form, name: str, label: str) -> int:
    """Raises InvalidRequest."""
    found = form.get(name, "").strip()
    try:
        return int(found)
    except ValueError:
        raise InvalidRequest(f"“{label}” is {found[:32]!r}; expected a whole number.") from None


def numbers(form: Form, name: str, label: str) -> list[float]:
    """Numbers with commas or blanks between them. Raises InvalidRequest."""
    parts = text(form, name, label).replace(",", " ").split()
    try:
        return [float(one) for one in parts]
    except ValueError:
        raise InvalidRequest(f"“{label}” is {' '.join(parts)[:64]!r}; expected numbers such as 0.5, 1, 2.") from None


def result_of(envelope: Envelope, type_: type[Result]) -> Result:
    """Raises pydantic's ValidationError: it is a child's word."""
    return type_.model_validate(envelope.result)


def written(value: Any) -> str:
    """A value as Python writes it, over several lines where it is long."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # with the quotes that people use
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value)
    if isinstance(value, dict):
        inner = [f"{written(key)}: {written(one)}" for key, one in value.items()]
    else:
        inner = [written(one) for one in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    short = opening + ", ".join(inner) + closing
    if len(short) < _WIDTH and "\n" not in short:
        return short
    body = ",\n".join(inner).replace("\n", "\n    ")
    return f"{opening}\n    {body},\n{closing}"


def plain(params: Mapping[str, Any]) -> Asked:
    """Parameters as JSON would bring them."""
    found: Asked = json.loads(json.dumps(params))
    return found
