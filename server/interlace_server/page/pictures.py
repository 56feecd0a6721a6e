"""What a method's job gave, for people: its tables, and the picture that the method draws of it."""

import asyncio
import importlib.util
import json
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from interlace.methods import find
from interlace.methods.base import Metric, Table
from interlace.protocol.errors import InterlaceError, UnknownMethod
from interlace.protocol.jobs import JobView
from interlace.protocol.method import Envelope
from interlace_server.gateway import Gateway
from interlace_state import log

_SECONDS = 60.0  # of wall time, for a picture
_AT_A_TIME = 2
_KEPT = 64  # pictures
_MOST_BYTES = 4 << 20  # of one
#: What a page shows of a result: more would keep others waiting while it is written out.
_MOST_TABLES, _MOST_METRICS, _MOST_ROWS, _MOST_CELLS = 20, 200, 200, 20_000
_LONGEST = 300  # characters of a cell
_LONGEST_PARAMS = 20_000  # characters


class NoPicture(InterlaceError):
    """A result that cannot be drawn, or not here."""

    code = "no_picture"
    http_status = 404


@dataclass(frozen=True)
class Given:
    """A result as a page shows it."""

    envelope: Envelope
    metrics: list[Metric]
    #: Cut to what a page shows.
    tables: list[Table]
    #: How many rows each table has.
    rows: list[int]
    #: As JSON, cut.
    params: str
    draws: bool


async def given(gateway: Gateway, job: JobView) -> Given | None:
    """What a job gave; None for a trace, for a job that gave nothing, and for what is too large to be shown."""
    if job.method is None or not 0 < (job.result_size or 0) <= gateway.config.page.picture_bytes:
        return None
    return await asyncio.to_thread(_read, await gateway.state.results.read(job.id))


def _read(data: bytes) -> Given | None:
    """None for what is no method's result."""
    try:
        envelope = Envelope.model_validate_json(data)
        metrics = [Metric.model_validate(one) for one in envelope.result.get("metrics", ())]
        tables = [Table.model_validate(one) for one in envelope.result.get("tables", ())]
    except (ValidationError, TypeError):
        return None
    shown = [_cut(table, _MOST_CELLS // len(tables[:_MOST_TABLES])) for table in tables[:_MOST_TABLES]]
    params = json.dumps(envelope.provenance.params, indent=2, ensure_ascii=False)[:_LONGEST_PARAMS]
    rows = [len(table.rows) for table in tables]
    return Given(envelope, metrics[:_MOST_METRICS], shown, rows, params, _draws(envelope.provenance.method))


def _cut(table: Table, cells: int) -> Table:
    """The first rows and columns, as many as fit into so many cells, with texts that are not too long."""
    columns = table.columns[:_MOST_ROWS]
    rows = table.rows[: min(_MOST_ROWS, max(1, cells // max(1, len(columns))))]
    short = [[one[:_LONGEST] if isinstance(one, str) else one for one in row[: len(columns)]] for row in rows]
    return table.model_copy(update={"columns": columns, "rows": short})


def _draws(method: str) -> bool:
    """Whether there is a picture of it, and what draws it is installed here."""
    try:
        return bool(find(method).plot) and importlib.util.find_spec("matplotlib") is not None
    except UnknownMethod:
        return False


@dataclass
class Pictures:
    """Draws, a few at a time, and keeps the last ones, and what could not be drawn: a result never changes."""

    _kept: "OrderedDict[str, asyncio.Task[bytes | NoPicture]]" = field(default_factory=OrderedDict)
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_A_TIME))

    async def of_job(self, gateway: Gateway, job: JobView) -> bytes:
        """A PNG. Raises NoPicture, UnknownJob."""
        task = self._kept.get(job.id)
        if task is None:
            task = self._kept[job.id] = asyncio.create_task(self._of_job(gateway, job), name="picture")
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(job.id)
        try:
            found = await asyncio.shield(task)  # others may wait for it, too
        except (InterlaceError, OSError):
            self._kept.pop(job.id, None)
            raise
        if isinstance(found, NoPicture):
            raise found
        return found

    async def _of_job(self, gateway: Gateway, job: JobView) -> bytes | NoPicture:
        found = await given(gateway, job)
        if found is None or not found.draws:
            return NoPicture(f"There is no picture of job {job.id}.")
        async with self._turn:
            try:
                return await drawn(found.envelope.provenance.method, found.envelope.result)
            except NoPicture as error:
                return error


async def drawn(method: str, result: dict[str, Any]) -> bytes:
    """The picture of a method's result as a PNG, drawn in a process of its own. Raises NoPicture."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlace_server.page.drawing", method),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            png, said = await process.communicate(json.dumps(result).encode())
    except TimeoutError:
        raise NoPicture(f"A picture of this result was not ready in {_SECONDS:g} seconds.") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode or not png.startswith(b"\x89PNG") or len(png) > _MOST_BYTES:
        why = said.decode(errors="replace").strip().splitlines()[-1:]
        log.warning("picture_failed", method=method, why=why)
        raise NoPicture("This result could not be drawn; its numbers are in the tables.")
    return png
