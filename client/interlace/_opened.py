"""Artifacts that a traced block reads: inside a job its child puts them here, by their names."""

from interlace.methods.base import Opened
from interlace.protocol.errors import InvalidArtifact

_opened: dict[str, Opened] = {}


def put(opened: Opened) -> None:
    """Have an artifact at hand, by what the request calls it and by its bare `artifact:ID`."""
    _opened[opened.ref] = opened
    _opened[opened.ref.partition("@")[0]] = opened


def opened(ref: str) -> Opened:
    """An artifact of this job. Raises InvalidArtifact, which names those that there are."""
    found = _opened.get(ref) or _opened.get(ref.partition("@")[0])
    if found is None:
        known = ", ".join(sorted(one.ref for one in _opened.values())) or "none"
        raise InvalidArtifact(f"This job has no artifact {ref[:96]}; its request names: {known}.")
    return found


def clear() -> None:
    """Forget all."""
    _opened.clear()
