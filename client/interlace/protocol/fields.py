"""What is wrong with the fields of what was sent: pydantic's findings in our words.

A sentence says which field, what it is, and what would be right. pydantic names the branch of a union that it tried
(`saes.list[union[SaeAt,str]].0.SaeAt.sae`); who wrote the field knows it by its place (`saes.0.sae`).
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from interlace.protocol.ids import TAKES

_MOST = 8  # sentences, and as many hints
_SHOWN = 80  # characters of a value
_Place = tuple[str | int, ...]
#: A value of another kind than the field's; in a union, of another kind than one of its branches.
_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "enum": "{expected}",
}
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
}
_LENGTHS = {
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "string_too_short": "at least {min_length}",
    "string_too_long": "at most {max_length}",
}
#: What is sent of a place that cannot be looked at: a query, or a body that was no JSON.
_UNKNOWN = object()


def wrong(problems: Iterable[Any], sent: Any = _UNKNOWN, model: Any = None) -> str:
    """Pydantic's list of ``problems`` with ``sent`` as a sentence's rest, a full stop at its end.

    With ``model``, what ``sent`` was to be (a model, or a mapping of such), it says what an object takes where one of
    its fields is missing or unknown.
    """
    found = [_Problem(one, sent, model) for one in problems]
    told = _told(found)
    sentences = list(dict.fromkeys(_sentence(place, some) for place, some in told.items()))
    more = f"; and {len(sentences) - _MOST} more" if len(sentences) > _MOST else ""
    hints = dict.fromkeys(hint for some in told.values() for one in some if (hint := one.hint()))
    return " ".join(("; ".join(sentences[:_MOST]) + more + ".", *list(hints)[:_MOST]))


class _Problem:
    """One of pydantic's, at its place."""

    def __init__(self, said: Mapping[str, Any], sent: Any, model: Any) -> None:
        self.type: str = said["type"]
        self.said = said
        self.place = _place(said["loc"], sent, self.type == "missing")
        self.is_of_kind = self.type in _KINDS
        names_field = self.type in ("missing", "extra_forbidden")
        self.models = _models_at(said["loc"][:-1] if names_field else said["loc"], model)
        #: What the field takes that tells the objects of a union apart.
        self.tags: tuple[str, ...] = ()
        if self.type in ("union_tag_invalid", "union_tag_not_found"):
            name = said["ctx"]["discriminator"].strip("'")
            fields = [one.model_fields[name].annotation for one in self.models if name in one.model_fields]
            self.place = (*self.place, name)
            self.tags = tuple(word for one in fields for word in get_args(one))

    def is_void(self) -> bool:
        """Whether it only follows from another: a list whose items are wrong has, to pydantic, too few."""
        return self.type == "too_short" and len(self.said["input"]) >= self.said["ctx"]["min_length"]

    def expected(self) -> str:
        """What would be right; nothing where pydantic's own words have to do."""
        context = {name: _number(value) for name, value in self.said.get("ctx", {}).items()}
        if self.tags:
            return f"{', '.join(map(repr, self.tags[:-1]))} or {self.tags[-1]!r}"
        if self.type == "string_pattern_mismatch":
            return TAKES.get(context["pattern"], f"a text like {context['pattern']}")
        phrase = (_KINDS | _BOUNDS | _LENGTHS).get(self.type, "").format_map(context)
        if phrase == "an object" and self.models:
            shared = [
                name for name in self.models[0].model_fields if all(name in it.model_fields for it in self.models)
            ]
            return f"{phrase} with {', '.join(shared)}" if shared else phrase
        return phrase

    def hint(self) -> str:
        """Of a field that is missing or unknown: what there is."""
        if self.type not in ("missing", "extra_forbidden") or not self.models:
            return ""
        owner = self.place[:-1]
        name = f"Each of {_named(owner[:-1])}" if owner and isinstance(owner[-1], int) else _named(owner) or "It"
        return f"{name} takes {' or '.join(map(_taken, self.models))}."


def _taken(model: type[BaseModel]) -> str:
    fields = model.model_fields.items()
    return ", ".join(f"{name} (required)" if one.is_required() else name for name, one in fields)


def _told(problems: Sequence[_Problem]) -> dict[_Place, list[_Problem]]:
    """Those worth telling, by their place: of a union the branch that fits best, or what each would have taken."""
    told: dict[_Place, list[_Problem]] = {}
    inner = {one.place[:depth] for one in problems for depth in range(len(one.place))}
    bound = {one.place for one in problems if not one.is_of_kind}
    for one in problems:
        if not one.is_void() and not (one.is_of_kind and (one.place in inner or one.place in bound)):
            told.setdefault(one.place, []).append(one)
    return told


def _sentence(place: _Place, problems: Sequence[_Problem]) -> str:
    first = problems[0]
    name, value = _named(place) or "it", first.said.get("input")
    if first.type == "missing":
        return f"{name} is missing"
    if first.type == "extra_forbidden":
        near = get_close_matches(str(place[-1]), [field for one in first.models for field in one.model_fields], n=1)
        return f"{name} is unknown" + (f" (did you mean `{near[0]}`?)" if near else "")
    phrases = sorted(dict.fromkeys(filter(None, (one.expected() for one in problems))), key=len)
    if not phrases:
        said = first.said["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{name}: {said[:1].lower()}{said[1:]}" if place else said
    if first.type in _LENGTHS:
        length, unit = len(value or ()), "character" if isinstance(value, str) else "item"
        return f"{name} has {length:,} {unit}{'s' * (length != 1)}, expected {phrases[0]}"
    if first.tags:
        value = value.get(place[-1]) if isinstance(value, Mapping) else value
        is_there = first.type == "union_tag_invalid"
        return f"{name} is {_shown(value) if is_there else 'missing'}, expected {phrases[0]}"
    return f"{name} is {_shown(value)}, expected {' or '.join(phrases)}"


def _named(place: _Place) -> str:
    return f"`{'.'.join(map(str, place))}`" if place else ""


def _number(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(_number(value))[:_SHOWN]
    return "an object" if isinstance(value, Mapping | BaseModel) else "a list"


def _place(loc: _Place, sent: Any, is_missing: bool) -> _Place:
    """Where a problem is in what was sent: pydantic's path without the names of branches."""
    place: list[str | int] = []
    here = sent
    for number, part in enumerate(loc, 1):
        if here is _UNKNOWN:
            place.append(part)
        elif (isinstance(here, Mapping) and part in here) or (
            isinstance(here, list | tuple) and part in range(len(here))
        ):
            place.append(part)
            here = here[part]  # type: ignore[index]
        elif is_missing and number == len(loc):
            place.append(part)
    return tuple(place)


def _models_at(loc: _Place, model: Any) -> tuple[type[BaseModel], ...]:
    """What an object at a path may be; the names of branches in it tell one from another."""
    if isinstance(model, Mapping):
        return _models_at(loc[1:], model.get(loc[0])) if loc else ()
    found = _models_in(model)
    for part in loc:
        owners = [one for one in found if part in one.model_fields]
        if owners:
            found = [inner for one in owners for inner in _models_in(one.model_fields[str(part)].annotation)]
        elif isinstance(part, str):
            found = [one for one in found if part == one.__name__ or part in _tags(one)] or found
    return tuple(dict.fromkeys(found))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for inner in get_args(annotation) for one in _models_in(inner)]


def _tags(model: type[BaseModel]) -> set[Any]:
    """What tells a model from the others of a union: the words of its fields that take one word only."""
    annotations = (one.annotation for one in model.model_fields.values())
    return {
        word for one in annotations if get_origin(one) is Literal and len(get_args(one)) == 1 for word in get_args(one)
    }
