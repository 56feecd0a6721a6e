"""A shell into which `interlace up` had its line pasted: what hosts models must not look for weights at a gateway."""

import os
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

_HERE = ("127.0.0.1", "localhost", "::1")


def own_hub(environ: Mapping[str, str]) -> str | None:
    """`HF_ENDPOINT` where it is the `/hf` of NDIF_HOST or of a gateway on this machine; None where it is a hub."""
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/")
    try:
        parts = urlsplit(endpoint)
        is_here = parts.hostname in _HERE
    except ValueError:
        return None
    is_ours = endpoint == f"{environ.get('NDIF_HOST', '').rstrip('/')}/hf" or (is_here and parts.path == "/hf")
    return endpoint if is_ours else None


def leave_own_hub() -> None:
    """Take it out of the environment, and say so; before `huggingface_hub` is imported, which looks once."""
    if (endpoint := own_hub(os.environ)) is not None:
        del os.environ["HF_ENDPOINT"]
        print(f"HF_ENDPOINT is {endpoint}, a gateway's own, which has no weights: the hub is asked.", file=sys.stderr)
