"""Logs: one JSON object a line on stderr, an ``action`` and its fields."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGER = "interlace.gateway"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "action": getattr(record, "action", record.name),
            **getattr(record, "fields", {"message": record.getMessage()}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure() -> None:
    """Send this process's logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_LOGGER).setLevel(logging.INFO)


def info(action: str, **fields: object) -> None:
    logging.getLogger(_LOGGER).info(action, extra={"action": action, "fields": fields})


def warning(action: str, **fields: object) -> None:
    logging.getLogger(_LOGGER).warning(action, extra={"action": action, "fields": fields})


def failure(action: str, error: BaseException, **fields: object) -> None:
    """Log an error with its traceback."""
    logging.getLogger(_LOGGER).error(action, exc_info=error, extra={"action": action, "fields": fields})


@contextmanager
def instead_of(expected: type[Exception], action: str) -> Iterator[None]:
    """Log an error of the block instead of raising it."""
    try:
        yield
    except expected as error:
        failure(action, error)
