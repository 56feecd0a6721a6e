"""Build the configuration from a YAML file and the environment, and say what is wrong with them.

A value comes from, in rising order: the default, the YAML file, the environment
(``INTERLACE_LIMITS__WALL_SECONDS=15`` for ``limits: {wall_seconds: 15}``), the command line.
What is secret may lie in a file that the environment names: ``INTERLACE_REDIS__URL__FILE=/run/secrets/redis_url``.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from interlace_state.config import Config
from interlace_state.settings.limits import LimitChanges
from interlace_state.settings.models import ModelConfig

_PREFIX = "INTERLACE_"
#: Names with our prefix that are not keys of the configuration.
_NOT_KEYS = frozenset({"INTERLACE_CONFIG"})
#: The end of a variable that names the file which its value lies in.
_IN_A_FILE = "file"
#: Folders that have their places by the XDG rules, where these variables are set.
_XDG = {"state_dir": "XDG_STATE_HOME", "cache_dir": "XDG_CACHE_HOME"}
_Loc = tuple[str | int, ...]
#: What a list or a mapping of sections holds.
_ITEMS: dict[str | int, type[BaseModel]] = {"models": ModelConfig, "roles": LimitChanges, "tenants": LimitChanges}


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
        value = environ[name]
        if loc[-1] == _IN_A_FILE:
            loc, value = loc[:-1], _read_secret(place, Path(value))
        _put(data, loc, _from_text(place, value), place)
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
        if model.autoscale is not None and model.replicas != 1:
            yield (
                ("models", index, "replicas"),
                f"`models[{index}]` has both `replicas` and `autoscale`: leave `replicas` out, and say in `autoscale` "
                "how many run at least and at most.",
            )
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


def _read_secret(place: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{place}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: {path}: not a text file (UTF-8)") from None


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
            got = re.sub(r"([?&]password=)[^&'\"]*", r"\1***", got)
            yield f"{place}: `{key}`: {said} (got {got})."


def _place(loc: _Loc, places: Mapping[_Loc, str]) -> str:
    return next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), "configuration")


def _dotted(loc: _Loc) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _section(loc: _Loc) -> type[BaseModel]:
    """The section that a place in the file belongs to; list indexes and the names of roles and tenants do not count."""
    section: type[BaseModel] = Config
    for part in loc:
        if part in _ITEMS:
            section = _ITEMS[part]
        elif part in section.model_fields:
            section = _in_section(section.model_fields[part].annotation)
    return section


def _in_section(annotation: Any) -> type[BaseModel]:
    """The section that a key holds, or may hold."""
    kinds = (annotation, *get_args(annotation))
    return next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))


def _suggest(loc: _Loc, allowed: list[str]) -> str:
    wrong = str(loc[-1])
    for name in Config.model_fields if len(loc) == 1 else ():
        if wrong.startswith(f"{name}_"):
            return f" Did you mean `{name}.{wrong.removeprefix(f'{name}_')}` ({_PREFIX}{name.upper()}__...)?"
    close = difflib.get_close_matches(wrong, allowed, n=1)
    return f" Did you mean `{close[0]}`?" if close else ""
