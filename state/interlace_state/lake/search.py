"""Looking for something in the lake: words, ranked by SQLite's full-text index in memory, and filters.

``erasing harry kind:peft base:gpt2 metric:loss<0.5 sort:-accuracy``: a filter is ``FIELD:VALUE``, quoted where it has
spaces; several of one field are alternatives, several fields must all hold.
"""

import operator
import re
import shlex
import sqlite3
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from interlace.methods import catalogue
from interlace.protocol.adapter import fits
from interlace.protocol.artifact import Artifact
from interlace.protocol.errors import InvalidRequest
from interlace.protocol.lake import Entry
from interlace_state.lake.graph import Snapshot, Viewer
from interlace_state.lake.records import ModelRecord

#: What people call each kind.
KIND_WORDS = {
    "model": "hosted model checkpoint",
    "peft": "adapter LoRA PEFT fine-tune",
    "diffusers-lora": "adapter LoRA diffusion style",
    "edit": "edit edited change of a module",
    "sae": "sparse autoencoder SAE dictionary features",
    "probe": "linear probe classifier",
    "data": "data table statistics",
    "texts": "texts prompts corpus dataset",
    "weights": "checkpoint weights whole model",
    "sketch": "sketch fingerprint of weights",
    "circuit": "circuit graph features",
    "images": "images pictures exemplars",
}
#: What else people call what the methods of a family do. (A method's title and papers are found anyway.)
METHOD_WORDS = {
    "attribute": "data attribution influence training examples",
    "circuit": "circuit discovery mechanism subgraph",
    "classifier": "spurious correlation shortcut debias bias",
    "customize": "personalise personalize customise finetune fine-tune art",
    "edit": "model editing knowledge update overwrite rewrite memory",
    "elm": "machine unlearning unlearn forget amnesia concept removal remove",
    "erasure": "detokenization detokenisation multi-token words",
    "images": "redraw img2img",
    "lake": "model soup merging average task arithmetic fingerprint",
    "mediate": "activation patching circuit discovery causal mediation localisation localization",
    "probe": "diagnostic classifier readout decoding",
    "relation": "knowledge triples analogy",
    "sae": "dictionary learning monosemantic superposition interpretable neurons",
    "steer": "activation addition control vector representation engineering persona",
    "trace": "localisation localization knowledge neurons",
}
LONGEST_QUERY = 1000  # characters
FACETS = ("kind", "base", "task", "architecture", "method", "owner", "state", "visibility")
#: Fields whose values are compared as they are, with other names of them.
_PLAIN = {
    **{one: one for one in ("kind", "base", "task", "owner", "state", "visibility", "job", "name")},
    "arch": "architecture",
    "architecture": "architecture",
    "model": "base",
}
#: Fields that ask for a place in the graph -> whether to walk up from the value, and whether one step only.
_GRAPH = {"parent": (False, 1), "ancestor": (False, None), "child": (True, 1), "descendant": (True, None)}
_OTHER = ("method", "metric", "tag", "works-with", "declared", "sort")
FILTERS = tuple(sorted({*_PLAIN, *_GRAPH, *_OTHER}))
_METRIC = re.compile(r"([^<>=]+?)(?:(<=|>=|<|>|=)(-?[0-9.]+(?:e-?[0-9]+)?))?")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
}
#: Of names, kinds and methods, models, what is declared, and the rest: how much a word counts there.
_WEIGHTS = (8.0, 4.0, 3.0, 4.0, 1.0)
_EDITS = ("edit", "peft")
#: Entries in all the word indexes that a process keeps, where there are several: some 2 KB each.
_MOST_INDEXED = 50_000
_MOST_SAID = 4000  # characters of an entry's parameters
#: A word that nothing has stands for words of its first letter that are so alike (difflib's ratio) and about as long.
_ALIKE, _LONGER, _STAND_INS = 0.7, 3, 3


@dataclass(frozen=True)
class Query:
    """What is asked for."""

    words: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Query":
        """Raises InvalidRequest for a filter that there is not, or a metric that cannot be compared."""
        if len(text) > LONGEST_QUERY:
            raise InvalidRequest(f"The query has {len(text)} characters; {LONGEST_QUERY} are the most.")
        try:
            parts = shlex.split(text)
        except ValueError:  # a quote that does not close, as in don't
            parts = text.split()
        words: list[str] = []
        filters: dict[str, tuple[str, ...]] = {}
        for part in parts:
            name, colon, value = part.partition(":")
            if not colon or not value or value.startswith("//"):
                words += re.findall(r"\w+", part)
                continue
            if name not in FILTERS:
                raise InvalidRequest(f"{name[:32]!r} is no filter; there are: {', '.join(FILTERS)}.")
            if name == "metric" and _METRIC.fullmatch(value) is None:
                raise InvalidRequest(
                    f"`metric:{value[:64]}`: expected metric:NAME or metric:NAME<0.5 (<, <=, =, >=, >)."
                )
            name = _PLAIN.get(name, name)
            filters[name] = (*filters.get(name, ()), value)
        return cls(tuple(words), filters)


class WordIndex:
    """The words of some entries, in an SQLite table of this process."""

    def __init__(self, snapshot: Snapshot, ids: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._tables = sqlite3.connect(":memory:", check_same_thread=False)
        columns = "name, kind, model, declared, rest"
        self._tables.execute(
            f"CREATE VIRTUAL TABLE entries USING fts5(id UNINDEXED, {columns}, tokenize='porter unicode61')"
        )
        rows = [(one, *_texts(snapshot.entries[one], snapshot.artifacts.get(one))) for one in ids]
        self._tables.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._tables.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(entries, row)")

    def find(self, words: Iterable[str]) -> dict[str, float]:
        """Id -> score, higher is nearer. Those with any of the words, or with a word that begins so; in place of a word
        that nothing has, such as a misspelled one, those with words like it. Blocks."""
        weights = ", ".join(map(str, (0.0, *_WEIGHTS)))
        with self._lock:
            asked = " OR ".join(_asked(one) for word in words for one in self._meant(word))
            found = self._tables.execute(
                f"SELECT id, -bm25(entries, {weights}) FROM entries WHERE entries MATCH ?", (asked,)
            ).fetchall()
        return {entry_id: float(score) for entry_id, score in found}

    def _meant(self, word: str) -> list[str]:
        """The word, or what it is likely to be a slip of."""
        known = self._tables.execute("SELECT 1 FROM entries WHERE entries MATCH ? LIMIT 1", (_asked(word),)).fetchone()
        if known or len(word) <= _LONGER:
            return [word]
        lower = word.lower()
        near = self._tables.execute(
            "SELECT term FROM terms WHERE term >= ? AND term < ? AND length(term) BETWEEN ? AND ?",
            (lower[0], chr(ord(lower[0]) + 1), len(word) - _LONGER, len(word) + _LONGER),
        )
        return get_close_matches(lower, [term for (term,) in near], _STAND_INS, _ALIKE) or [word]


class WordIndexes:
    """An index of what each sees, and of nothing else: how rare a word is would tell of others' entries."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        #: By the ids in it; the least recently used first.
        self._made: OrderedDict[frozenset[str], WordIndex] = OrderedDict()

    def of(self, viewer: Viewer) -> WordIndex:
        """Of a large lake, making one takes a second. Blocks."""
        ids = frozenset(one for one in self._snapshot.entries if self._snapshot.visible(viewer, one))
        with self._lock:
            index = self._made.pop(ids, None) or WordIndex(self._snapshot, ids)
            self._made[ids] = index
            while len(self._made) > 1 and sum(map(len, self._made)) > _MOST_INDEXED:
                self._made.popitem(last=False)
        return index


def _asked(word: str) -> str:
    return f'"{word}"' + "*" * (len(word) > 3)


def _texts(entry: Entry, artifact: Artifact | None) -> tuple[str, ...]:
    spec, family = catalogue().get(entry.method or ""), (entry.method or "").partition("@")[0].partition(".")[0]
    method = f"{spec.title} {' '.join(f'{one.title} {one.authors}' for one in spec.cites)}" if spec else ""
    rest: list[str] = [entry.id, entry.hash, entry.owner, *entry.tags]
    declared: list[str] = []
    if artifact is not None:
        declared = list(artifact.declared.values())
        rest += [f"{name} {value}" for name, value in artifact.facts.items()]
        if artifact.lineage is not None:
            rest += [one.name for one in artifact.lineage.metrics]
            rest.append(str(artifact.lineage.params or "")[:_MOST_SAID])
    kind = f"{entry.kind} {KIND_WORDS.get(entry.kind, '')} {entry.method or ''} {method} {METHOD_WORDS.get(family, '')}"
    model = f"{entry.base or ''} {entry.architecture or ''} {entry.task or ''}"
    return entry.name, kind, model, " ".join(declared), " ".join(rest)


def matching(snapshot: Snapshot, viewer: Viewer, query: Query) -> list[Entry]:
    """The entries that a viewer sees and all filters let through. Raises InvalidRequest."""
    tests = [_test(snapshot, viewer, name, values) for name, values in query.filters.items() if name != "sort"]
    return [
        entry
        for entry in snapshot.entries.values()
        if snapshot.visible(viewer, entry.id) and all(test(entry) for test in tests)
    ]


def in_order(entries: list[Entry], scores: Mapping[str, float] | None, sort: tuple[str, ...]) -> list[Entry]:
    """By what `sort` names, a metric (``-NAME``: the highest first) or `name`; else the nearest, or the newest."""
    if scores is not None:
        entries = [one.model_copy(update={"score": scores[one.id]}) for one in entries if one.id in scores]
    entries.sort(key=lambda one: (-(one.score or 0), -one.created, one.id))
    for what in reversed(sort):
        name, down = what.removeprefix("-"), what.startswith("-")
        if name == "name":
            entries.sort(key=lambda one: one.name.lower(), reverse=down)
            continue
        valued = [(value, one) for one in entries if (value := _number(one, name)) is not None]
        entries = [one for _, one in sorted(valued, key=lambda pair: pair[0], reverse=down)]
    return entries


def facets(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Field -> value -> how many have it, the most first."""
    counts = {name: Counter[str]() for name in FACETS}
    for entry in entries:
        for name in FACETS:
            if (value := getattr(entry, name)) is not None:
                counts[name][value] += 1
    return {name: dict(counted.most_common(50)) for name, counted in counts.items() if counted}


def _test(snapshot: Snapshot, viewer: Viewer, name: str, values: tuple[str, ...]) -> Callable[[Entry], bool]:
    if name in _GRAPH:
        up, depth = _GRAPH[name]
        seen = [value for value in values if snapshot.visible(viewer, value)]
        near = {one for value in seen for one in snapshot.walk(viewer, value, up=up, depth=depth)}
        return lambda entry: entry.id in near
    if name == "base":
        return lambda entry: entry.base is not None and any(fits(value, entry.base) for value in values)
    if name == "method":
        return lambda entry: any(_is_method(entry.method, value) for value in values)
    if name == "metric":
        return lambda entry: any(_measures(entry, value) for value in values)
    if name == "tag":
        return lambda entry: any(value in entry.tags for value in values)
    if name == "works-with":
        fitting = {one for value in values for one in _works_with(snapshot, viewer, value)}
        return lambda entry: entry.id in fitting
    if name == "declared":
        return lambda entry: any(_declares(snapshot.artifacts.get(entry.id), value) for value in values)
    wanted = {value.lower() for value in values}
    return lambda entry: str(getattr(entry, name) or "").lower() in wanted


def _is_method(method: str | None, value: str) -> bool:
    if method is None:
        return False
    name = method.partition("@")[0]
    return value in (method, name, name.partition(".")[0])


def _number(entry: Entry, name: str) -> float | None:
    """Of a field, or else of a metric of this name."""
    if name in ("created", "size", "n_params"):
        value: float | None = getattr(entry, name)
        return value
    return _value(entry, name)


def _value(entry: Entry, metric: str) -> float | None:
    return next((one.value for one in entry.metrics if one.name == metric), None)


def _measures(entry: Entry, text: str) -> bool:
    match = _METRIC.fullmatch(text)
    assert match is not None  # as `Query.parse` has seen
    value = _value(entry, match[1])
    if value is None or match[2] is None:
        return value is not None
    return _COMPARE[match[2]](value, float(match[3]))


def _declares(artifact: Artifact | None, text: str) -> bool:
    """``license=mit``, or ``license``: that it is declared at all."""
    name, equals, value = text.partition("=")
    if artifact is None or name not in artifact.declared:
        return False
    return not equals or artifact.declared[name].lower() == value.lower()


def _works_with(snapshot: Snapshot, viewer: Viewer, value: str) -> set[str]:
    """What can be used with a hosted model (repo id, slug or id), or with an artifact: what is for the same weights."""
    models = {
        one.id: one
        for one in snapshot.models.values()
        if one.id in snapshot.hosted and value in (one.id, one.key.repo_id, one.key.slug) and viewer.sees_model(one)
    }
    given = snapshot.artifacts.get(value)
    if given is not None and viewer.sees(given) and (base := given.base) is not None:
        record = snapshot.models.get(snapshot.model_of(base) or "")
        models = {} if record is None else {record.id: record}
    return {
        one.id
        for one in snapshot.artifacts.values()
        for record in models.values()
        if one.id != value and _is_for(snapshot, one, record) and _takes(record.key.wrapper, one.kind)
    }


def _is_for(snapshot: Snapshot, artifact: Artifact, record: ModelRecord) -> bool:
    """Whether it was made for a model: at its commit, where it says for which."""
    base = artifact.base
    if base is None:
        return False
    if base.key is not None and base.commit is not None:
        return snapshot.model_of(base) == record.id
    return fits(base.repo_id, record.key.repo_id)


def _takes(wrapper: str, kind: str) -> bool:
    """Whether a model of this wrapper can use such an artifact: as an adapter or edit, or as what a method reads."""
    if kind == "diffusers-lora":
        return wrapper == "DiffusionModel"
    return wrapper == "TransformersModel" or kind not in _EDITS
