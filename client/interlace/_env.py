"""What a model's remote requests say beside the block: artifacts that it reads."""

from collections.abc import Mapping
from functools import partial
from typing import Any


class _Says:
    """A model's `_remoteable_get_env`, with names added to what it said before."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.names: dict[str, list[Any]] = {}

    def __call__(self) -> dict[str, Any]:
        env = dict(self.before())
        for key, names in self.names.items():
            said = list(env.get(key, ()))
            env[key] = [*said, *(name for name in names if name not in said)]
        return env

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (dict,)  # a block travels with its model's tree, where nobody asks for this


def add(model: Any, key: str, name: Any) -> None:
    """Have every remote request of a nnsight model name an artifact under ``env[key]``, once.

    ``name`` is a text, or what JSON has for it.
    """
    says = model.__dict__.get("_remoteable_get_env")
    if not isinstance(says, _Says):
        says = model.__dict__["_remoteable_get_env"] = _Says(model._remoteable_get_env)
    names = says.names.setdefault(key, [])
    if name not in names:
        names.append(name)


def clear(model: Any, key: str) -> None:
    """Have them name nothing under ``env[key]`` any more."""
    says = model.__dict__.get("_remoteable_get_env")
    if isinstance(says, _Says):
        says.names.pop(key, None)


def of_lora(adapter: str, said: Any) -> dict[str, Any]:
    """An entry of `env.lora`: ``said`` is a weight, or `weight`, `t_min` and `t_max` by name."""
    return {"adapter": adapter, **(dict(said) if isinstance(said, Mapping) else {"weight": said})}
