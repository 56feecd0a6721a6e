"""What people see: progress while parts start, and tables. Plain lines where nobody looks (no terminal)."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO


class Screen:
    """Progress of one command, on stderr: one line for each part that is done, with its seconds."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stderr
        self._console = _console(self._output)
        self._status: Any = None
        self._pending: list[str] = []

    def say(self, line: str) -> None:
        """Print one line."""
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            # Whoever read our progress may be gone; that must not stop what we watch.
            with contextlib.suppress(BrokenPipeError):
                print(line, file=self._output, flush=True)

    def warn(self, line: str) -> None:
        """Print one line in red."""
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True, style="bold red")
        else:
            self.say(f"WARNING: {line}")

    @contextmanager
    def part(self, name: str) -> Iterator[list[str]]:
        """Time a part. What the block puts into the list is printed behind the name when it is done."""
        started = time.monotonic()
        details: list[str] = []
        self._pending.append(name)
        self._show()
        try:
            yield details
        finally:
            self._pending.remove(name)
            self._show()
        self.say(f"{name:<10} {time.monotonic() - started:6.1f} s  {' '.join(details)}".rstrip())

    def _show(self) -> None:
        if self._console is None:
            return
        if self._pending and self._status is None:
            self._status = self._console.status("")
            self._status.start()
        if self._pending:
            self._status.update(f"starting {', '.join(self._pending)}")
        elif self._status is not None:
            self._status.stop()
            self._status = None


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout."""
    if (console := _console(sys.stdout)) is not None:
        from rich.table import Column, Table
        from rich.text import Text

        table = Table(*(Column(header, overflow="fold") for header in headers), box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    lines = [tuple(headers), *map(tuple, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def utc(seconds: float) -> str:
    """Unix time in UTC, as on the pages; beside it, or at the head of its column, it says so."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _console(output: TextIO) -> Any:
    """A rich console for a terminal; None for anything else, or where rich is not installed."""
    if not output.isatty() or importlib.util.find_spec("rich") is None:
        return None
    from rich.console import Console

    return Console(file=output)
