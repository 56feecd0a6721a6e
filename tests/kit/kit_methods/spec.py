"""What `kit.steps` takes and gives."""

from typing import Any

from pydantic import Field

from interlace.methods.base import Estimate, ModelFacts, Params, Result, Spec, Texts


class StepsParams(Params):
    steps: int = Field(default=3, ge=1)
    pause: float = Field(default=0.0, ge=0, le=60)
    """Seconds a step takes."""
    texts: Texts | None = None
    source: str | None = None
    """An artifact to read."""
    makes: list[str] = Field(default=[])
    """Kinds of artifacts to give at the end."""
    size: int = 4
    """Numbers in each of their tensors."""
    fault: str = ""
    """What to do at the end in place of giving a result."""


class StepsResult(Result):
    total: float
    """Of random numbers, one a step."""
    first: int
    """The step that this run began with."""
    logits: float
    """The sum of the model's logits of a prompt."""
    read: dict[str, Any] = Field(default={})


def estimate(params: StepsParams, facts: ModelFacts) -> Estimate:
    return Estimate(forwards=params.steps, backwards=1, tokens=1000 * params.steps, peak_bytes=params.size)


SPECS = (
    Spec(
        name="kit.steps",
        version=2,
        title="Steps that take time.",
        cites=(),
        params=StepsParams,
        result=StepsResult,
        run="kit_methods.run:run",
        estimate=estimate,
        takes={"texts": ("texts",), "source": ("data", "peft")},
        makes=("data", "texts", "edit", "sae", "probe", "peft"),
    ),
)
