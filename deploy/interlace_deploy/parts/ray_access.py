"""Who may use Ray, which executes code for whoever may: a token of its own for the one that we start."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from interlace_deploy.parts.rundir import RunDir, write_private
from interlace_state.config import Config


def environment(config: Config, run: RunDir, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of workers. A Ray of our own asks for a token that is new each time and that only we can read."""
    if config.runtime != "ray" or config.ray.address is not None:
        return dict(environ)
    write_private(run.ray_token, secrets.token_hex(32))
    # A token in the environment, which others can see, would come before the one in the file.
    kept = {name: value for name, value in environ.items() if name != "RAY_AUTH_TOKEN"}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(run.ray_token),
        # Ray's switch for "this machine only", on Linux too: nearly all its ports then listen on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


@dataclass(frozen=True)
class Access:
    """How a configured Ray tells who may use it, as far as can be seen from here."""

    description: str
    #: What is wrong with it, and what to do.
    warning: str = ""


def access(config: Config, environ: Mapping[str, str]) -> Access:
    """Of the Ray that workers with this configuration and this environment would use."""
    if config.runtime != "ray":
        return Access(f"not used: `runtime: {config.runtime}`")
    if config.ray.address is None:
        return Access("one of our own, which asks for a token, on this machine only; no dashboard, no job API")
    mode = environ.get("RAY_AUTH_MODE", "").lower()
    described = f"at {config.ray.address}, RAY_AUTH_MODE={mode or '(not set)'}"
    if mode == "token":
        return Access(described)
    return Access(
        described,
        f"Ray at {config.ray.address} executes code for whoever reaches it, and RAY_AUTH_MODE is not `token`. Make a "
        "token with `ray get-auth-token --generate`, copy ~/.ray/auth_token to each node, and start "
        "Ray and Interlace with RAY_AUTH_MODE=token.",
    )
