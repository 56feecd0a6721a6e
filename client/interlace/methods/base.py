"""The whole contract of a method: what it is called, what it takes, what it gives, what it may say while it runs.

A method is a folder: `spec.py` declares it, without torch, so that a gateway can list it and refuse a wrong field;
`run.py` has the function ``run(model, params, report) -> Result``, which is the same in a notebook and in a job.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from interlace.methods.shared.display import drawn_by_notebooks
from interlace.protocol.method import Envelope

if TYPE_CHECKING:
    from torch import Tensor

#: What names an artifact, `artifact:ID` or `artifact:ID@HASH`; on one's own machine also the path of its folder.
ArtifactName = Annotated[str, Field(min_length=1, max_length=256)]
#: Texts, or the artifact of kind `texts` that holds them.
Texts = Annotated[list[str], Field(min_length=1)] | ArtifactName


#: Metrics that a result shows of itself.
_MOST_SHOWN = 12


class Params(BaseModel):
    """What a method takes. Defaults are the published ones; a field's docstring says its unit and its source."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Citation(BaseModel):
    """Where a method comes from."""

    model_config = ConfigDict(frozen=True)

    title: str
    authors: str
    year: int
    #: `arXiv:NNNN.NNNNN`, a DOI or a URL.
    where: str


class Metric(BaseModel):
    """One number, and what is needed to read it."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    value: float
    #: `fraction`, `nats`, `nats/token`, `logits`, `1` for what has none.
    unit: str = "1"
    #: How many items it is of.
    n: int | None = None
    #: The 95 % interval.
    ci95: tuple[float, float] | None = None
    #: Which part of the data it is of: `train`, `heldout`, `control`...
    split: str = ""
    seed: int | None = None


class Table(BaseModel):
    """Rows under named columns. What is no finite number is None there: JSON has no other word for it."""

    model_config = ConfigDict(frozen=True)

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[float | int | str | bool | None, ...], ...]

    @field_validator("rows")
    @classmethod
    def _finite(cls, rows: tuple[tuple[Any, ...], ...]) -> tuple[tuple[Any, ...], ...]:
        if all(map(_is_plain, chain.from_iterable(rows))):
            return rows
        return tuple(tuple(one if _is_plain(one) else None for one in row) for row in rows)

    def frame(self) -> Any:
        """As a pandas frame; needs `interlace[pictures]`."""
        return import_module("pandas").DataFrame(self.rows, columns=list(self.columns))


def _is_plain(value: object) -> bool:
    return not isinstance(value, float) or isfinite(value)


def _said(metric: Metric) -> str:
    split = f" ({metric.split})" if metric.split else ""
    unit = f" {metric.unit}" if metric.unit != "1" else ""
    interval = f", 95 % in {metric.ci95[0]:.4g} to {metric.ci95[1]:.4g}" if metric.ci95 else ""
    return f"{metric.name}{split} = {metric.value:.4g}{unit}{interval}"


class Result(BaseModel):
    """What a method gives. A method adds fields of its own; large arrays are artifacts, which it names here."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")

    metrics: tuple[Metric, ...] = ()
    """Numbers, each with its unit, of how many, and its 95 % interval where it has one."""
    tables: tuple[Table, ...] = ()
    """Rows under named columns."""
    artifacts: tuple[ArtifactName, ...] = ()
    """What `Report.artifact` gave, in its order."""
    warnings: tuple[str, ...] = ()
    """What to know before the numbers are used."""
    _envelope: Envelope | None = PrivateAttr(None)

    @property
    def envelope(self) -> Envelope | None:
        """What the server says beside it: where it comes from and what it cost. None for a run on one's own machine."""
        return self._envelope

    def in_envelope(self, envelope: Envelope) -> None:
        """Say what it came in."""
        self._envelope = envelope

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, whatever they came in."""
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """What is in it, a line each; the values themselves are a name away."""
        names = (name for name in type(self).model_fields if name not in Result.model_fields)
        more = len(self.metrics) - _MOST_SHOWN
        lines = [
            type(self).__name__,
            *map(_said, self.metrics[:_MOST_SHOWN]),
            *([f"... and {more} metrics more"] if more > 0 else []),
            *(f"table {one.name}: {len(one.rows)} rows of {', '.join(one.columns)}" for one in self.tables),
            *(f".{name}" for name in names if getattr(self, name) not in (None, ())),
            *self.artifacts,
            *(f"warning: {one}" for one in self.warnings),
        ]
        return "\n  ".join(lines)

    __str__ = __repr__

    def plot(self, **how: Any) -> Any:
        """The method's picture of it, a figure of matplotlib (`interlace[pictures]`), which a notebook draws.

        Raises LookupError for none.
        """
        spec: Spec = import_module("interlace.methods").of_result(type(self))
        if not spec.plot:
            raise LookupError(f"{spec.ref} has no picture; its numbers are in `metrics` and `tables`")
        return drawn_by_notebooks(_named(spec.plot)(self, **how))

    def metric(self, name: str, split: str = "") -> Metric:
        """The metric of a name. Raises KeyError, which lists those that there are."""
        for metric in self.metrics:
            if metric.name == name and split in ("", metric.split):
                return metric
        raise KeyError(f"{name!r}; there are {sorted({metric.name for metric in self.metrics})}")

    def table(self, name: str) -> Table:
        """The table of a name. Raises KeyError, which lists those that there are."""
        for table in self.tables:
            if table.name == name:
                return table
        raise KeyError(f"{name!r}; there are {[table.name for table in self.tables]}")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a hosted model without loading it; what it costs to run is estimated from this."""

    n_params: int
    n_layers: int
    hidden_size: int
    vocab_size: int
    #: Bytes of one weight.
    weight_bytes: int = 4
    #: Of a diffusion pipeline: channels, height and width of a picture's latents. What a token is elsewhere, is one
    #: position of these. None for a model of text.
    latents: tuple[int, int, int] | None = None
    #: Of a diffusion pipeline: pixels of a latent's side.
    pixels: int = 8
    #: Of a UNet: channels of each of its blocks, from the outside in.
    widths: tuple[int, ...] = ()
    #: Of a diffusion pipeline: channels of its autoencoder where it has a picture's full size.
    vae_width: int = 128
    #: Of artifacts of images that the params name: how many images, their height and width, by that name.
    images: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


class Estimate(BaseModel):
    """What a run would cost: the answer to `dry_run`."""

    model_config = ConfigDict(frozen=True)

    #: Passes of the model, each of a whole batch.
    forwards: int
    backwards: int = 0
    #: Tokens that go through the model, padding included, counted once for each forward.
    tokens: int
    #: Bytes over what the model itself holds.
    peak_bytes: int
    #: Seconds, where the server has measured how fast the model is.
    seconds: float | None = None


@dataclass(frozen=True)
class Opened:
    """An artifact that a method was given, read: its tensors by name, and its configuration."""

    kind: str
    tensors: "Mapping[str, Tensor]"
    config: Mapping[str, Any]
    #: What names it.
    ref: str


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood when its worker was lost."""

    step: int
    tensors: "Mapping[str, Tensor]"
    state: Mapping[str, Any]


class Report(Protocol):
    """What a method may say and ask while it runs: the only thing that differs between a notebook and a job."""

    #: What all randomness of the run comes from; torch, numpy and random are seeded with it before `run`.
    seed: int

    @property
    def stopping(self) -> bool:
        """Whether somebody has cancelled: end in seconds, and give what there is, with a word of it in `warnings`."""

    def progress(self, step: int, of: int | None = None, **metrics: float) -> None:
        """Tell how far it is: ``step`` are done. Cheap; not every call is told."""

    def picture(self, pixels: "Tensor", title: str = "", step: int | None = None) -> None:
        """Show what there is by now: pictures of one size, uint8 [n, height, width, 3], made one small PNG.

        Whoever watches sees the newest; nothing is kept of it behind the job. Not every call is shown.
        """

    def count(self, *, forwards: int = 0, backwards: int = 0, tokens: int = 0) -> None:
        """Add to what the run has cost."""

    def open(self, name: ArtifactName, kind: str | None = None) -> Opened:
        """An artifact that the params name. Raises InvalidArtifact for what is not there or of another kind."""

    def texts(self, texts: Texts) -> list[str]:
        """Texts as given, or out of their artifact."""

    def artifact(
        self, kind: str, tensors: "Mapping[str, Tensor]", config: Mapping[str, Any], *, name: str = ""
    ) -> ArtifactName:
        """Keep something: tensors as safetensors (contiguous, on the CPU), and a configuration as JSON.

        Gives what names it. How the two are laid out in files is the kind's (`protocol.artifact`). In a job all are
        stored at its end, or none: what came before a checkpoint is gone if the worker is lost after it.
        """

    def checkpoint(self, step: int, tensors: "Mapping[str, Tensor]", state: Mapping[str, Any]) -> None:
        """Keep where the run stands; the newest is kept. May be called at every step: most calls do nothing, but the
        first after somebody has cancelled."""

    def resumed(self) -> Checkpoint | None:
        """Where a run that lost its worker, or was cancelled, is to go on; None at a first start."""


Run = Callable[[Any, Any, Report], Result]


@dataclass(frozen=True)
class Spec:
    """A method's declaration. `SPECS` of a folder's `spec.py` lists its own."""

    #: `family.verb`, such as `elm.erase`.
    name: str
    #: One more when equal params give another result.
    version: int
    #: One sentence.
    title: str
    cites: Sequence[Citation]
    params: type[Params]
    result: type[Result]
    #: `module:function`, imported only where it runs.
    run: str
    #: What a run would cost, from its params and the model alone.
    estimate: Callable[[Any, ModelFacts], Estimate]
    #: Fields of `params` that name artifacts, dots for nesting, with the kinds that will do.
    takes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: Kinds of artifacts that it makes.
    makes: Sequence[str] = ()
    #: The page of it, for people: a path in the documentation, or a URL.
    page: str = ""

    #: `module:function` that draws a result: `function(result, **how) -> Figure`.
    plot: str = ""
    #: The classes of nnsight whose models it runs on.
    wrappers: Sequence[str] = ("TransformersModel",)

    @property
    def ref(self) -> str:
        """`NAME@VERSION`, which a job names."""
        return f"{self.name}@{self.version}"

    def load(self) -> Run:
        """The function itself."""
        run: Run = _named(self.run)
        return run


def _named(place: str) -> Any:
    """What `module:function` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
