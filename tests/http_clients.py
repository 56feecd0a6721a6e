"""What httpx does by default, made fit for tests on a machine that may be busy."""

from httpx._config import DEFAULT_TIMEOUT_CONFIG


def be_patient(seconds: float = 60.0) -> None:
    """Have whoever says nothing of it wait so long for an answer, instead of 5 seconds."""
    for step in ("connect", "read", "write", "pool"):
        setattr(DEFAULT_TIMEOUT_CONFIG, step, seconds)
