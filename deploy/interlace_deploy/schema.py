"""A JSON schema for people: a line for each field."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_Schema = Mapping[str, Any]
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "object",
    "null": "null",
}
_COUNTED = ("whole number", "number", "text", "object")
_DEEPEST = 2  # objects within objects


@dataclass(frozen=True)
class SchemaField:
    """One field of an object. One of an object within is indented below its owner, behind a dot."""

    name: str
    kind: str
    is_required: bool
    default: Any
    #: The first line of what is said of it.
    says: str


def fields(schema: _Schema, *, within: bool = False) -> list[SchemaField]:
    """The fields of an object; with ``within`` also those of the objects that its fields hold."""
    return list(_fields(schema, schema.get("$defs", {}), 0, _DEEPEST if within else 0))


def _fields(schema: _Schema, named: _Schema, depth: int, deepest: int) -> Iterator[SchemaField]:
    needed, mark = schema.get("required", ()), depth * "  " + "." * (depth > 0)
    for name, field in schema.get("properties", {}).items():
        says = str(field.get("description", "")).partition("\n")[0]
        yield SchemaField(mark + name, _kind(field, named), name in needed, field.get("default"), says)
        if depth < deepest:
            for inner in _objects(field, named):
                yield from _fields(inner, named, depth + 1, deepest)


def _kind(schema: _Schema, named: _Schema) -> str:
    """What a field may hold, in words."""
    if "$ref" in schema:
        return _kind(_named(schema, named), named)
    if "const" in schema or "enum" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one, named) for one in schema.get("anyOf") or schema["oneOf"]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        kinds = dict.fromkeys(_kind(one, named) for one in items)
        return f"list of {', '.join(f'{one}s' if one in _COUNTED else one for one in kinds)}"
    return _KINDS.get(schema.get("type", ""), "anything")


def _objects(schema: _Schema, named: _Schema) -> Iterator[_Schema]:
    """The objects that a field may hold."""
    if "$ref" in schema:
        yield from _objects(_named(schema, named), named)
    elif "properties" in schema:
        yield schema
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *filter(None, [schema.get("items")])):
        yield from _objects(one, named)


def _named(schema: _Schema, named: _Schema) -> _Schema:
    found: _Schema = named[schema["$ref"].rpartition("/")[2]]
    return found
