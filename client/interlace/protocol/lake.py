"""The lake's words: everything that is hosted here or that jobs have made, as it is found, described, linked and cited.

``lake://OWNER/NAME@HASH`` names contents, ``lake://OWNER/NAME:TAG`` where a tag points now, ``lake://OWNER/NAME`` the
newest version. A hosted model's owner is `hosted`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interlace.protocol.errors import InvalidRequest
from interlace.protocol.ids import NAME

Visibility = Literal["private", "tenant", "public"]
#: Where a statement comes from: this server's own records, a job's measurement, somebody's word, or a guess.
Source = Literal["recorded", "measured", "declared", "inferred"]
State = Literal["hosted", "kept", "away", "deleted", "hidden"]
HOSTED = "hosted"
_REF = re.compile(rf"lake://({NAME})/([a-z0-9][a-z0-9._-]{{0,127}})(?:@([0-9a-f]{{8,64}})|:({NAME}))?")


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Measured(_View):
    """A number that a method's job has given of what it was about."""

    name: str = Field(max_length=64)
    value: float
    unit: str = Field(default="1", max_length=32)
    n: int | None = None
    #: The 95 % interval.
    ci95: tuple[float, float] | None = None
    split: str = Field(default="", max_length=32)


class Entry(_View):
    """One thing in the lake: a hosted model, or an artifact."""

    #: Of an artifact its own, of a hosted model 16 hex digits of its key and commit.
    id: str
    #: `model`, or the artifact's kind.
    kind: str
    name: str
    owner: str
    #: `lake://OWNER/NAME@HASH`.
    ref: str
    #: Of an artifact of its contents; of a hosted model its commit.
    hash: str
    #: Unix time; of a hosted model when it was first seen here.
    created: float
    #: `hosted`, `kept`, `away` (a model that is hosted no more), `deleted` (a tombstone), `hidden` (not yours to see).
    state: State
    #: None for a hosted model, which is for every key that reaches it.
    visibility: Visibility | None = None
    #: The repo id of the model that it was made for.
    base: str | None = None
    #: As the checkpoint's configuration, or an artifact's, says.
    architecture: str | None = None
    task: str | None = None
    #: `NAME@VERSION` of what has made it, and the job.
    method: str | None = None
    job: str | None = None
    n_params: int | None = None
    #: Bytes.
    size: int | None = None
    #: 1 for the oldest of those of one owner and name.
    version: int = 1
    tags: tuple[str, ...] = ()
    metrics: tuple[Measured, ...] = ()
    #: Of a search for words: higher is nearer. None otherwise.
    score: float | None = None


class LakePage(_View):
    """What a search has found, the best or the newest first."""

    #: Words that were looked for, and filters that were understood, such as `{"kind": ["peft"]}`.
    words: tuple[str, ...]
    filters: dict[str, tuple[str, ...]]
    total: int
    offset: int
    entries: tuple[Entry, ...]
    #: Of all that was found: field -> value -> how many.
    facets: dict[str, dict[str, int]]


class Statement(_View):
    """One thing that is said of an entry, and who says so."""

    field: str
    value: Any
    source: Source
    #: `job ID`, `artifact:ID`, `manifest`, `configuration`: where it can be looked up.
    evidence: str
    #: Unix time.
    at: float | None = None
    #: A measurement of other contents than those that are hosted now.
    stale: bool = False


class Edge(_View):
    """From a parent to what came of it."""

    parent: str
    child: str
    #: `base` (the model that it was made on), `input` (read, or on, while it was made), `declared`, `recovered`.
    relation: Literal["base", "input", "declared", "recovered"]
    source: Source
    method: str | None = None
    job: str | None = None
    at: float | None = None
    #: Of a recovered edge: how much better than the runner-up, 0 to 1.
    margin: float | None = None


class Node(_View):
    """An entry in a graph."""

    id: str
    #: Empty for what is deleted or not yours to see.
    label: str
    kind: str
    state: State
    #: Steps from the entry that was asked for: below 0 towards what it came of.
    depth: int
    method: str | None = None
    created: float | None = None


class LineageGraph(_View):
    """What an entry came of and what came of it."""

    root: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    #: Whether there is more beyond the depth or the number of nodes that was asked for.
    truncated: bool = False


class Card(_View):
    """All that is known of an entry. What nobody knows is not there; `unknown` names the usual fields of these."""

    entry: Entry
    statements: tuple[Statement, ...]
    unknown: tuple[str, ...]
    #: Of the same owner and name, the newest first.
    versions: tuple[Entry, ...]
    #: Straight from it and to it.
    parents: tuple[Node, ...]
    children: tuple[Node, ...]


class Citation(_View):
    """How to cite an entry, and the call that makes it again."""

    ref: str
    bibtex: str
    #: Python that gives the same again; None where nothing was recorded that could.
    call: str | None
    #: What is missing for an exact call, in words.
    caveats: tuple[str, ...] = ()


class Difference(_View):
    field: str
    a: Any
    b: Any


class Comparison(_View):
    """Two entries side by side: by record here, and by weights and behaviour through the method that `call` runs."""

    a: Entry
    b: Entry
    differences: tuple[Difference, ...]
    #: The nearest entries that both came of.
    ancestors: tuple[Node, ...]
    #: What jobs have measured of the two against each other.
    measured: tuple[Statement, ...]
    #: The body of a `POST /v1/jobs` that measures it; None where no hosted model can hold both.
    request: dict[str, Any] | None


class Tag(_View):
    """A name that points to a version, and may be moved."""

    owner: str
    name: str
    tag: str
    id: str
    hash: str
    moved: float
    #: Where it pointed before, the newest first: up to 32.
    before: tuple[str, ...] = ()


class EntryChange(BaseModel):
    """The body of `PATCH /v1/lake/{id}`: what is left out stays."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    visibility: Visibility | None = None
    """`private`: for the key that made it; `tenant`: for all keys of the tenant; `public`: for all tenants to read."""
    declared: dict[str, str | None] | None = Field(default=None, max_length=64)
    """What its owner says of it, such as `license` or `description`; None takes a field back."""


class LakeCounts(_View):
    """What an index holds."""

    artifacts: int
    models: int
    runs: int
    tombstones: int
    tags: int


@dataclass(frozen=True)
class LakeRef:
    """A parsed ``lake://`` name."""

    owner: str
    name: str
    hash: str = ""
    tag: str = ""

    @classmethod
    def parse(cls, text: str) -> "LakeRef":
        """Raises InvalidRequest, which says what would be right."""
        match = _REF.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"{text[:96]!r} names nothing in the lake; expected lake://OWNER/NAME, with @HASH (8 to 64 hex digits) "
                "or :TAG behind it."
            )
        return cls(match[1], match[2], match[3] or "", match[4] or "")


def slug(name: str) -> str:
    """A name as it stands in a ``lake://`` reference."""
    allowed = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")
    return allowed[:128] or "unnamed"


def plain(value: Any) -> str:
    """What is said of an entry, in words: a text as it is, what was measured as a sentence, anything else as JSON."""
    if isinstance(value, dict) and {"value", "unit"} <= value.keys() and isinstance(value["value"], int | float):
        return _measured(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _measured(of: dict[str, Any]) -> str:
    unit = "" if of["unit"] == "1" else f" {of['unit']}"
    ci95 = of.get("ci95")
    more = (
        "" if of.get("n") is None else f"n = {of['n']}",
        "" if ci95 is None else f"95 % in {ci95[0]:.4g} to {ci95[1]:.4g}",
    )
    return f"{of['value']:.4g}{unit}" + (f" ({', '.join(filter(None, more))})" if any(more) else "")
