"""What is said of wrong fields: which, what it is, what would be right."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interlace.methods import find
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.fields import wrong
from interlace.protocol.ids import JOB_ID


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=3)
    count: int = 0


class Few(BaseModel):
    kind: Literal["few"] = "few"
    k: int = Field(gt=0)


class Many(BaseModel):
    kind: Literal["many"] = "many"
    share: float = Field(le=0.5)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner | None = None
    several: list[Inner | str] | str = ""
    one_of: Annotated[Few | Many, Field(discriminator="kind")] | None = None
    at: tuple[Literal["first", "last"], ...] | Literal["each"] = "each"
    two: tuple[int, int] = (0, 0)
    job: str = Field(default="0" * 32, pattern=f"^{JOB_ID}$")
    on: bool = False
    texts: list[str] = Field(default=["a"], min_length=1, max_length=2)

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.on and self.inner is None:
            raise ValueError("`on` needs `inner`.")
        return self


def said(sent: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate(sent)
    return wrong(raised.value.errors(), sent, Outer)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"inner": {"text": 3}}, "`inner.text` is 3, expected a text."),
        ({"inner": {"text": ""}}, "`inner.text` has 0 characters, expected at least 1."),
        ({"inner": {"text": "a", "count": 1.5}}, "`inner.count` is 1.5, expected a whole number."),
        ({"inner": {"count": None}}, "`inner.text` is missing; `inner.count` is null, expected a whole number. "
                                     "`inner` takes text (required), count."),
        ({"inner": {"text": "a", "cout": 1}}, "`inner.cout` is unknown (did you mean `count`?). `inner` takes text "
                                              "(required), count."),
        ({"inner": "text"}, "`inner` is 'text', expected an object with text, count."),
        ({"several": [{"count": 1}]}, "`several.0.text` is missing. Each of `several` takes text (required), count."),
        ({"several": [4]}, "`several.0` is 4, expected a text or an object with text, count."),
        ({"several": 4}, "`several` is 4, expected a list or a text."),
        ({"one_of": {"kind": "none"}}, "`one_of.kind` is 'none', expected 'few' or 'many'."),
        ({"one_of": {"k": 1}}, "`one_of.kind` is missing, expected 'few' or 'many'."),
        ({"one_of": {"kind": "few", "k": 0}}, "`one_of.k` is 0, expected more than 0."),
        ({"one_of": {"kind": "many", "share": 0.7}}, "`one_of.share` is 0.7, expected at most 0.5."),
        ({"one_of": {"kind": "few"}}, "`one_of.k` is missing. `one_of` takes kind, k (required)."),
        ({"one_of": "few"}, "`one_of` is 'few', expected an object with kind."),
        ({"at": ["first", "middle"]}, "`at.1` is 'middle', expected 'first' or 'last'."),
        ({"at": "all"}, "`at` is 'all', expected a list or 'each'."),
        ({"two": [1]}, "`two.1` is missing."),
        ({"job": "x" * 200}, f"`job` is '{'x' * 80}'..., expected 32 hex digits, as `interlace jobs` shows them."),
        ({"on": True}, "`on` needs `inner`."),
        ({"texts": [1]}, "`texts.0` is 1, expected a text."),
        ({"texts": []}, "`texts` has 0 items, expected at least 1."),
        ({"texts": ["a"] * 3}, "`texts` has 3 items, expected at most 2."),
        ("x", "it is 'x', expected an object with inner, several, one_of, at, two, job, on, texts."),
    ],
)  # fmt: skip
def test_a_field_is_named_with_what_would_be_right(sent: Any, sentence: str) -> None:
    assert said(sent) == sentence


def test_of_many_the_first_are_told() -> None:
    told = said({"several": [{"text": 1}] * 1000})
    assert told.startswith("`several.0.text` is 1, expected a text; ")
    assert told.endswith("`several.7.text` is 1, expected a text; and 992 more.")


def test_where_nothing_is_known_of_what_was_sent() -> None:
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate_json('{"inner": {"text": 3}, "on": 7}')
    assert wrong(raised.value.errors()) == "`inner.text` is 3, expected a text; `on` is 7, expected true or false."


def test_a_notebook_says_it_as_a_server_does() -> None:
    from interlace.methods.notebook import Notebook, run  # needs torch

    params = {"layer": 0, "prompts": [{"prompt": "a", "wanted": "b"}], "neutral": [1]}
    with pytest.raises(InvalidRequest) as raised:
        run(find("steer"), None, params, Notebook(bar=False))
    assert str(raised.value) == (
        "The parameters of steer@1 are not valid: `prompts.0.other` is missing; `neutral.0` is 1, expected a text. "
        "Each of `prompts` takes prompt (required), wanted (required), other (required)."
    )
