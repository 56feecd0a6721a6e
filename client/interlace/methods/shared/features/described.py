"""What is told of a feature of a dictionary so that a person can say what it is for. Nothing here needs torch."""

from pydantic import BaseModel, ConfigDict, Field

from interlace.methods.base import Params


class Context(BaseModel):
    """A stretch of a text around the place where a feature is strongest in it."""

    model_config = ConfigDict(frozen=True)

    #: Which text of the data, from 0.
    text: int
    #: Where in the text it is strongest, in tokens.
    position: int
    #: The same, in ``tokens``.
    at: int
    tokens: tuple[str, ...]
    #: The feature at each of them.
    activations: tuple[float, ...]

    @property
    def peak(self) -> float:
        """The feature where it is strongest."""
        return self.activations[self.at]


class Description(BaseModel):
    """One feature as data shows it."""

    model_config = ConfigDict(frozen=True)

    site: str
    #: None for the embeddings.
    layer: int | None
    feature: int
    #: Positions that were looked at.
    n: int
    #: The share of them where it is on.
    fires: float
    #: The largest, and the mean where it is on.
    most: float
    mean: float
    #: The strongest first, at most one a text.
    contexts: tuple[Context, ...] = ()
    #: Tokens whose logits it raises most along the direct path, and by how much for each unit of the feature.
    promoted: tuple[tuple[str, float], ...] = ()
    #: Those that it lowers most.
    suppressed: tuple[tuple[str, float], ...] = ()
    #: Of where it is on: the edges of equal bins from 0 to ``most``, and how many positions are in each.
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def place(self) -> str:
        """`resid_post 3`, or `embed`."""
        return self.site if self.layer is None else f"{self.site} {self.layer}"


class Reading(Params):
    """How texts are read, and how much is told of a feature."""

    k: int = Field(default=20, ge=1, le=1000)
    """Contexts of a feature, at most one a text."""
    before: int = Field(default=24, ge=0, le=1024)
    """Tokens of a context before the strongest."""
    after: int = Field(default=6, ge=0, le=1024)
    """Tokens after it."""
    logits: int = Field(default=10, ge=0, le=1000)
    """Tokens that it raises, and as many that it lowers."""
    bins: int = Field(default=24, ge=1, le=1000)
    """Of the histogram."""
