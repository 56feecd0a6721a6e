"""What all sections of the configuration are made of."""

from collections.abc import Callable

from pydantic import AfterValidator, BaseModel, ConfigDict

MOST_BYTES = 1 << 50


def such(that: Callable[[str], object], sentence: str) -> AfterValidator:
    """Refuses a text with ``expected SENTENCE``, unless it is ``that``."""

    def check(value: str) -> str:
        if not that(value):
            raise ValueError(f"expected {sentence}")
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """Keys with a docstring each; a key that is not there is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
