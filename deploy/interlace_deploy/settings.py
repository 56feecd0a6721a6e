"""Which configuration a command works with: `--config`, `$INTERLACE_CONFIG`, `./interlace.yaml`, or the defaults."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace_deploy.problems import UsageProblem
from interlace_state.config import Config
from interlace_state.config_file import ConfigError, load

DEFAULT_MODEL = "smollm2-135m-instruct"


def read(given: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration. Raises UsageProblem with one line for each mistake."""
    try:
        return load(_file(given, environ), environ, overrides)
    except ConfigError as error:
        raise UsageProblem(str(error)) from None


def mint_command(given: Path | None) -> str:
    """What to type for an API key of the Interlace that this configuration describes."""
    option = f" --config {shlex.quote(str(given))}" if given is not None else ""
    return f"interlace keys create --tenant NAME{option}"


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a part: without our variables, which its configuration file has in it already."""
    return {name: value for name, value in environ.items() if not name.startswith("INTERLACE_")}


def _file(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    if given is not None:
        return given
    if named := environ.get("INTERLACE_CONFIG"):
        return Path(named)
    local = Path("interlace.yaml")
    return local if os.path.exists(local) else None  # also where we may not look: a folder of another account's
