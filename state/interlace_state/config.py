"""The one configuration that every part reads: its schema, and loading it from YAML and the environment.

A value comes from, in rising order: the default here, the YAML file, the environment
(``INTERLACE_LIMITS__WALL_SECONDS=15`` for ``limits: {wall_seconds: 15}``), the command line.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from interlace.protocol.job import Limits
from interlace.protocol.model import is_repo_id, is_revision, is_task

_DAY = 24 * 3600  # seconds
_DECADE = 3650 * _DAY  # no clock of Redis, Lua or the event loop overflows with it
_MOST_BYTES = 1 << 50
_PREFIX = "INTERLACE_"
#: Names with our prefix that are not keys of the configuration.
_NOT_KEYS = frozenset({"INTERLACE_CONFIG"})
#: Folders that have their places by the XDG rules, where these variables are set.
_XDG = {"state_dir": "XDG_STATE_HOME", "cache_dir": "XDG_CACHE_HOME"}
_Loc = tuple[str | int, ...]


def _such(that: Callable[[str], object], sentence: str) -> AfterValidator:
    """Refuses a text with ``expected SENTENCE``, unless it is ``that``."""

    def check(value: str) -> str:
        if not that(value):
            raise ValueError(f"expected {sentence}")
        return value

    return AfterValidator(check)


def _is_http(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0


def _is_redis(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("redis", "rediss", "unix") and parts.port != 0


_Version = Annotated[str, _such(re.compile(r"\d+(\.\d+){0,3}").fullmatch, "a version, e.g. '3.10'")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """One model to host."""

    source: str
    """Where the weights are: a hub repo id, a local path, or `package:DISTRIBUTION==VERSION/FILE.gguf`."""
    repo_id: Annotated[str, _such(is_repo_id, "'name' or 'org/name', as clients can write it")] | None = None
    """The id that clients write; default: the hub's id, or `local/FOLDER` for a path."""
    revision: Annotated[str, _such(is_revision, "a branch, a tag or a commit")] = "main"
    """Branch, tag or commit on the hub."""
    task: Annotated[str, _such(is_task, "a task such as 'text-generation'")] = "text-generation"
    """The transformers pipeline task."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """The type that weights are held in; `auto` takes the checkpoint's own."""
    replicas: int = Field(default=1, ge=1)
    """How many copies of the model run."""
    slots: int = Field(default=1, ge=1)
    """How many jobs a replica runs at the same time, each in a process of its own."""
    threads: int = Field(default=0, ge=0)
    """Processor threads for one job; 0 shares the cores evenly among all slots."""
    trust_remote_code: bool = False
    """Run the Python code that the checkpoint brings. Only for repositories that you have read."""


class GatewayConfig(_Section):
    """The HTTP and WebSocket front door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    public_url: Annotated[str, _such(_is_http, "http://HOST or https://HOST")] | None = None
    """The URL that clients reach the gateway at, for result links; default: the one that the client used.
    Needed where a proxy passes another name than localhost on to a gateway that listens on loopback."""
    min_nnsight: _Version = "0.8.0"
    """The oldest client nnsight that is served."""
    min_python: _Version = "3.10"
    """The oldest client Python that is served."""
    drain_seconds: float = Field(default=10.0, ge=0, le=_DAY)
    """On shutdown, how long open streams may still run to their end."""


class RedisConfig(_Section):
    """Where jobs, events and the catalogue live."""

    url: Annotated[str, _such(_is_redis, "a redis://, rediss:// or unix:// URL")] | None = None
    """`redis://`, `rediss://` or `unix://` URL; default: a server of our own."""
    prefix: str = "interlace:"
    """Put before every key, so that several services can share a server. One set of workers for each prefix."""


class StoreConfig(_Section):
    """Where payloads and results lie."""

    url: str | None = None
    """A folder or any fsspec URL that gateways and workers share; default: a folder in `state_dir`."""
    inline_bytes: int = Field(default=64 << 20, ge=0)
    """Results up to this many bytes go over the client's WebSocket, larger ones by a signed URL."""


class LifetimeConfig(_Section):
    """How long things are kept, in seconds."""

    result: int = Field(default=_DAY, ge=60, le=_DECADE)
    """A job's events and result, from its end."""
    result_url: int = Field(default=3600, ge=10, le=_DECADE)
    """A signed result URL; each poll signs a new one."""
    waiting: int = Field(default=7 * _DAY, ge=60, le=_DECADE)
    """A job that nobody has run. Longer than `limits.wall_seconds`."""
    lease: float = Field(default=15.0, ge=1, le=_DAY)
    """A worker that is silent for this long has lost its job to another."""


class RayConfig(_Section):
    """Ray, where `runtime: ray`."""

    address: str | None = None
    """The cluster to join, e.g. `auto` or `ray://head:10001`; default: a local one of our own."""
    object_store_bytes: int = Field(default=100 << 20, ge=80 << 20)
    """Shared memory for a local Ray; payloads never pass through it."""


class Admission(Limits):
    """What one job may use, and what the gateway takes in."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    payload_bytes: int = Field(default=256 << 20, gt=0)
    """Bytes of a request's body."""
    waiting_jobs: int = Field(default=10_000, gt=0)
    """Jobs that may wait for one model."""

    @field_validator("*")
    @classmethod
    def _possible(cls, value: float) -> float:
        if not value > 0:
            raise ValueError("should be greater than 0")
        if value > _MOST_BYTES:
            raise ValueError(f"should be at most {_MOST_BYTES}")
        return value


class Config(_Section):
    """All of it."""

    runtime: Literal["ray", "process"] = "ray"
    """`ray` hosts replicas with Ray Serve, `process` as plain supervised processes."""
    models: tuple[ModelConfig, ...] = ()
    """The models to host."""
    gateway: GatewayConfig = GatewayConfig()
    redis: RedisConfig = RedisConfig()
    store: StoreConfig = StoreConfig()
    lifetimes: LifetimeConfig = LifetimeConfig()
    limits: Admission = Admission()
    ray: RayConfig = RayConfig()
    state_dir: Path = Field(default_factory=lambda: Path.home() / ".local" / "state" / "interlace")
    """Results, the embedded Redis, logs."""
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "interlace")
    """Models that were fetched or converted."""

    @field_validator("state_dir", "cache_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @property
    def store_url(self) -> str:
        return self.store.url or str(self.state_dir / "store")


class ConfigError(ValueError):
    """A key or a value of the configuration is wrong; the message names each, its place and what is allowed."""


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Config:
    """Build the configuration. Raises ConfigError with one line for each mistake."""
    data: dict[str, Any] = {}
    places: dict[_Loc, str] = {}
    if path is not None:
        data, places = _read_yaml(path)
    for name, variable in _XDG.items():
        if (base := environ.get(variable)) and name not in data:
            data[name], places[(name,)] = Path(base) / "interlace", f"environment variable {variable}"
    for loc, name in _variables(environ):
        place = f"environment variable {name}"
        _put(data, loc, _from_text(place, environ[name]), place)
        places |= {loc[:n]: place for n in range(1, len(loc) + 1) if loc[:n] not in places or n == len(loc)}
    for dotted, value in (overrides or {}).items():
        loc = tuple(dotted.split("."))
        _put(data, loc, value, "command line")
        places[loc] = "command line"
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, places))) from None
    if contradictions := [f"{_place(loc, places)}: {sentence}" for loc, sentence in _contradictions(config)]:
        raise ConfigError("\n".join(contradictions))
    return config


def dump(config: Config) -> str:
    """The configuration as JSON, for a process that we start."""
    return config.model_dump_json()


def _contradictions(config: Config) -> Iterator[tuple[_Loc, str]]:
    """Where values that are fine by themselves do not go together, and what to set."""
    if config.runtime == "ray" and config.ray.address is not None and config.store.url is None:
        yield (
            ("ray", "address"),
            "`ray.address` lets replicas run on other machines: set `store.url` to a folder or a URL that all of them "
            "and the gateway reach.",
        )
    if config.lifetimes.waiting <= config.limits.wall_seconds:
        is_set = "waiting" in config.lifetimes.model_fields_set
        yield (
            ("lifetimes", "waiting") if is_set else ("limits", "wall_seconds"),
            f"`lifetimes.waiting` ({config.lifetimes.waiting} s) should be longer than `limits.wall_seconds` "
            f"({config.limits.wall_seconds:g} s), or a job is forgotten while it runs.",
        )
    first: dict[tuple[object, ...], int] = {}
    for index, model in enumerate(config.models):
        other = first.setdefault(
            (model.source, model.repo_id, model.revision, model.task, model.trust_remote_code), index
        )
        if other != index:
            yield (
                ("models", index),
                f"`models[{index}]` is `models[{other}]` again ({model.source}): for more copies, set `replicas`.",
            )


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[_Loc, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        lines = [] if node is None else list(_lines(node, ()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8)") from None
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{at}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias (`*name`) is inside of what it names") from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(f"{path}, line {line}: expected `key: value` pairs; keys: {', '.join(Config.model_fields)}")
    places: dict[_Loc, str] = {}
    for loc, line in lines:
        if loc in places:
            raise ConfigError(f"{path}, line {line}: `{_dotted(loc)}` is there twice: it is at {places[loc]} too.")
        places[loc] = f"{path}, line {line}"
    return data, places


def _lines(node: yaml.Node, loc: _Loc) -> Iterator[tuple[_Loc, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*loc, str(key.value)), key.start_mark.line + 1
            yield from _lines(value, (*loc, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*loc, index), item.start_mark.line + 1
            yield from _lines(item, (*loc, index))


def _variables(environ: Mapping[str, str]) -> list[tuple[_Loc, str]]:
    """Our variables and the keys that they stand for, a list's items in their order; an empty one counts as not set."""
    found: list[tuple[_Loc, str]] = []
    for name, value in environ.items():
        if name.startswith(_PREFIX) and name not in _NOT_KEYS and value.strip():
            parts = name.removeprefix(_PREFIX).lower().split("__")
            found.append((tuple(int(part) if part.isdecimal() else part for part in parts), name))
    return sorted(found, key=lambda item: [str(part).zfill(8) for part in item[0]])


def _from_text(place: str, value: str) -> Any:
    """A variable's value: a list, a mapping or null as YAML has it, all else as written (`3.10` stays `3.10`)."""
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        if value.lstrip().startswith(("[", "{")):
            raise ConfigError(f"{place}: not a YAML list or mapping: {value!r}") from None
        return value
    return parsed if parsed is None or value.lstrip().startswith(("[", "{", "- ")) else value


def _put(node: dict[str, Any] | list[Any], loc: _Loc, value: Any, place: str) -> None:
    head, rest = loc[0], loc[1:]
    empty: dict[str, Any] | list[Any] = [] if rest and isinstance(rest[0], int) else {}
    if isinstance(node, list):
        if not isinstance(head, int) or head > len(node):
            raise ConfigError(f"{place}: {head!r} is not an item of the list; the next one is {len(node)}.")
        if head == len(node):
            node.append(empty)
        slot: Any = head
    else:
        slot = str(head)
    if not rest:
        node[slot] = value
        return
    if not isinstance(node[slot] if isinstance(node, list) else node.get(slot), dict | list):
        node[slot] = empty
    _put(node[slot], rest, value, place)


def _explain(error: ValidationError, places: Mapping[_Loc, str]) -> Iterator[str]:
    for problem in error.errors():
        loc: _Loc = problem["loc"]
        place = _place(loc, places)
        key = _dotted(loc)
        if problem["type"] == "extra_forbidden":
            allowed = list(_section(loc[:-1]).model_fields)
            yield f"{place}: unknown key `{key}`.{_suggest(loc, allowed)} Allowed here: {', '.join(allowed)}."
        elif problem["type"] == "missing":
            yield f"{place}: `{key}` is missing."
        elif problem["type"] in ("model_type", "model_attributes_type"):
            allowed = list(_section(loc).model_fields)
            yield f"{place}: `{key}`: expected keys ({', '.join(allowed)}), got {problem['input']!r}."
        elif problem["type"] == "tuple_type":
            yield f"{place}: `{key}`: expected a list, got {problem['input']!r}."
        else:
            said = problem["msg"].removeprefix("Value error, ")
            got = re.sub(r"//[^/]*@", "//***@", repr(problem["input"]))  # a URL may have a password in it
            yield f"{place}: `{key}`: {said} (got {got})."


def _place(loc: _Loc, places: Mapping[_Loc, str]) -> str:
    return next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), "configuration")


def _dotted(loc: _Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _section(loc: _Loc) -> type[BaseModel]:
    """The section that a place in the file belongs to; list indexes do not count."""
    section: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, str):
            section = ModelConfig if part == "models" else section.model_fields[part].annotation  # type: ignore[assignment]
    return section


def _suggest(loc: _Loc, allowed: list[str]) -> str:
    wrong = str(loc[-1])
    for name in Config.model_fields if len(loc) == 1 else ():
        if wrong.startswith(f"{name}_"):
            return f" Did you mean `{name}.{wrong.removeprefix(f'{name}_')}` ({_PREFIX}{name.upper()}__...)?"
    close = difflib.get_close_matches(wrong, allowed, n=1)
    return f" Did you mean `{close[0]}`?" if close else ""
