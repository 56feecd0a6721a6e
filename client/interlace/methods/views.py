"""What is told of methods to whoever may run them."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from interlace.methods.base import Citation, Spec


class MethodSummary(BaseModel):
    """A method in a list."""

    model_config = ConfigDict(frozen=True)

    #: `NAME@VERSION`.
    ref: str
    name: str
    version: int
    title: str


class MethodList(BaseModel):
    """By name."""

    model_config = ConfigDict(frozen=True)

    methods: list[MethodSummary]


class MethodView(MethodSummary):
    """A method, and all that is needed to call it."""

    cites: list[Citation]
    #: JSON schemas.
    params: dict[str, Any]
    result: dict[str, Any]
    #: Fields of the parameters that name artifacts, with the kinds that will do.
    takes: dict[str, list[str]]
    #: Kinds of artifacts that it makes.
    makes: list[str]
    #: Its page.
    page: str
    #: Whether a result of it can be drawn.
    draws: bool
    #: The classes of nnsight whose models it runs on.
    wrappers: list[str] = ["TransformersModel"]


def summary(spec: Spec) -> MethodSummary:
    return MethodSummary(ref=spec.ref, name=spec.name, version=spec.version, title=spec.title)


def view(spec: Spec) -> MethodView:
    return MethodView(
        **summary(spec).model_dump(),
        cites=list(spec.cites),
        params=spec.params.model_json_schema(),
        result=spec.result.model_json_schema(),
        takes={field: list(kinds) for field, kinds in spec.takes.items()},
        makes=list(spec.makes),
        page=spec.page,
        draws=bool(spec.plot),
        wrappers=list(spec.wrappers),
    )
