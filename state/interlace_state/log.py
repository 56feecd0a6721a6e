"""Logs: one JSON object a line on stderr, an ``event`` and its fields.

A line made inside a `bound` block carries that block's fields, too: a request's id, a job's.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_LOGGER = "interlace"
_BOUND: ContextVar[Mapping[str, object]] = ContextVar("bound", default=MappingProxyType({}))


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: Mapping[str, object]) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            **self._process,
            **_BOUND.get(),
            **getattr(record, "fields", {"message": record.getMessage()}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(**process: object) -> None:
    """Send this process's logs to stderr; every line carries these fields, such as a replica's model."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_LOGGER).setLevel(logging.INFO)


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Put these fields on every line of this task, and of the tasks that it starts, while the block runs."""
    token = _BOUND.set({**_BOUND.get(), **fields})
    try:
        yield
    finally:
        _BOUND.reset(token)


def bind(**fields: object) -> None:
    """Put these fields, and no former ones, on every line of this task from here on."""
    _BOUND.set(fields)


def info(event: str, **fields: object) -> None:
    _emit(logging.INFO, event, fields)


def warning(event: str, **fields: object) -> None:
    _emit(logging.WARNING, event, fields)


def failure(event: str, error: BaseException, **fields: object) -> None:
    """Log an error with its traceback."""
    _emit(logging.ERROR, event, fields, error)


def _emit(level: int, event: str, fields: Mapping[str, object], error: BaseException | None = None) -> None:
    logging.getLogger(_LOGGER).log(level, event, exc_info=error, extra={"event": event, "fields": fields})


@contextmanager
def instead_of(expected: type[Exception], event: str) -> Iterator[None]:
    """Log an error of the block instead of raising it."""
    try:
        yield
    except expected as error:
        failure(event, error)
