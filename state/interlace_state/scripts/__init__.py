"""Steps that happen whole, inside Redis. `common.lua` goes before each of those of the queue."""

from importlib.resources import files


def script(name: str) -> str:
    """The text of a script."""
    return files(__name__).joinpath(f"{name}.lua").read_text()
