"""Published methods as functions on a model: the same in a notebook and as a job next to the weights.

`catalogue` finds the folders beside this file and what other packages name in the entry-point group
`interlace.methods`. It reads declarations only, and needs no torch.
"""

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from types import MappingProxyType
from typing import Any

from interlace.methods.base import Result, Spec
from interlace.protocol.errors import InterlaceError, UnknownMethod

#: An entry point of this group names a module with `SPECS`, such as `lab_methods.norms.spec`.
GROUP = "interlace.methods"
_MOST_NAMED = 50


class BrokenCatalogue(InterlaceError):
    """An installed method cannot be had: its declaration is wrong."""

    code = "broken_catalogue"


@cache
def catalogue() -> Mapping[str, Spec]:
    """Every installed method, by `NAME@VERSION`. Raises BrokenCatalogue, which says whose fault it is."""
    found: dict[str, tuple[Spec, str]] = {}
    for place in [*_own(), *_others()]:
        for spec in _specs(place):
            if spec.ref in found:
                raise BrokenCatalogue(
                    f"Two methods are called {spec.ref}: of {found[spec.ref][1]} and of {place}. Rename one, or "
                    "uninstall it."
                )
            found[spec.ref] = spec, place
    return MappingProxyType({ref: spec for ref, (spec, _) in sorted(found.items())})


def find(name: str) -> Spec:
    """The method of a name, `elm.erase@1`, or without a version the newest. Raises UnknownMethod, which lists them."""
    known = catalogue()
    if name in known:
        return known[name]
    versions = [spec for spec in known.values() if spec.name == name]
    if versions:
        return max(versions, key=lambda spec: spec.version)
    raise UnknownMethod(name, list(known)[:_MOST_NAMED])


def of_result(result: type[Result]) -> Spec:
    """The method that gives results of this type. Raises LookupError."""
    for spec in catalogue().values():
        if spec.result is result:
            return spec
    raise LookupError(f"no installed method gives a {result.__name__}")


def _own() -> list[str]:
    """The modules `spec` of the folders here, but for what methods share."""
    folders = [folder.name for folder in pkgutil.iter_modules(__path__) if folder.ispkg and folder.name != "shared"]
    return [f"{__name__}.{folder}.spec" for folder in folders]


def _others() -> list[str]:
    """The modules that other packages name."""
    return sorted({point.value for point in metadata.entry_points(group=GROUP)})


def _specs(place: str) -> tuple[Spec, ...]:
    try:
        specs: Any = import_module(place).SPECS
    except Exception as error:
        raise BrokenCatalogue(f"The methods of {place} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(specs, tuple | list) or not all(isinstance(one, Spec) for one in specs):
        raise BrokenCatalogue(f"`SPECS` of {place} must be a tuple of `interlace.methods.base.Spec`.")
    return tuple(specs)
