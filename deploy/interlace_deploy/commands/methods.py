"""`interlace methods`, `interlace run`: published methods next to the weights of a server that runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from interlace import Client, RunningMethod
from interlace.methods.base import Result
from interlace.protocol.event import Log, Progress, StateChanged
from interlace.protocol.job import JobState
from interlace_deploy.commands.jobs import client_of
from interlace_deploy.problems import CommandProblem, UsageProblem
from interlace_deploy.schema import SchemaField, fields
from interlace_deploy.screen import show_table

_LONGEST = 24  # characters of a default in a table
_LONGEST_KIND = 48
_WIDTH = 100  # characters of a line that is written over


def list_(arguments: argparse.Namespace) -> int:
    """The methods that the server has."""
    with client_of(arguments) as client:
        methods = client.methods()
    if arguments.json:
        print(json.dumps([one.model_dump(mode="json") for one in methods], indent=2))
    else:
        show_table(("method", ""), [(one.ref, one.title) for one in methods])
    return 0


def show(arguments: argparse.Namespace) -> int:
    """One method: its source in the literature, and a line for each field of what it takes and of what it gives."""
    with client_of(arguments) as client:
        method = client.method(arguments.method)
    if arguments.json:
        print(method.model_dump_json(indent=2))
        return 0
    print(f"{method.ref}: {method.title}")
    for one in method.cites:
        print(f"  {one.authors} ({one.year}). {one.title}. {one.where}")
    print()
    show_table(("parameter", "type", "default", ""), [_row(one) for one in fields(method.params, within=True)])
    print()
    show_table(("result", "type", ""), [(one.name, one.kind, one.says) for one in fields(method.result)])
    if says := method.result.get("description"):
        print(" ".join(says.split()))
    if made := ", ".join(method.makes):
        print(f"It makes artifacts of the kind {made}.")
    return 0


def _row(field: SchemaField) -> tuple[str, ...]:
    default = "required" if field.is_required else _short(json.dumps(field.default), _LONGEST)
    return field.name, _short(field.kind, _LONGEST_KIND), default, field.says


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def run(arguments: argparse.Namespace) -> int:
    """Post a method's job and print its id; with `--follow` wait, with `--dry-run` show what it would cost."""
    params = {} if arguments.params is None else _object(arguments.params)
    inputs = dict(map(_input, arguments.input))
    with client_of(arguments) as client:
        if arguments.dry_run:
            found = client.estimate(arguments.method, model=arguments.model, params=params, inputs=inputs)
            print(found.model_dump_json(indent=2))
            return 0
        job = client.submit_method(
            arguments.method,
            model=arguments.model,
            params=params,
            inputs=inputs,
            edits=arguments.edit,
            seed=arguments.seed,
        )
        print(job.id, file=sys.stderr if arguments.follow else sys.stdout, flush=True)
        return _follow(client, job, arguments.json) if arguments.follow else 0


def _follow(client: Client, job: RunningMethod, as_json: bool) -> int:
    """Show what happens until the job ends, then its result; 1 if it came to nothing."""
    try:
        _watch(job)
    except KeyboardInterrupt:
        client.cancel(job.id)  # a second Ctrl-C waits no more
        print("cancelled: it ends with what it has", file=sys.stderr)
        _watch(job)
    end = job.wait()
    if end.result is None:
        raise CommandProblem(f"{end.state}: {end.text}")
    if as_json:
        print(job.envelope().model_dump_json(indent=2))
    else:
        _print(job.result())
    return 0 if end.state is JobState.COMPLETED else 1


def _watch(job: RunningMethod) -> None:
    """Print what happens; on a terminal each word of progress is written over the last."""
    on_screen = sys.stderr.isatty()
    for event in job.events():
        if isinstance(event, Progress):
            text, end = event.sentence, "" if on_screen else "\n"
        elif isinstance(event, Log | StateChanged) and event.text:
            text, end = event.text, "\n"
        else:
            continue
        print(f"\r{text:<{_WIDTH}}" if on_screen else text, end=end, file=sys.stderr, flush=True)
    if on_screen:
        print(file=sys.stderr)


def _print(result: Result) -> None:
    rows = [
        (one.name, one.split, f"{one.value:.6g}", one.unit, _interval(one.ci95), "" if one.n is None else str(one.n))
        for one in result.metrics
    ]
    show_table(("metric", "split", "value", "unit", "95 %", "n"), rows)
    for table in result.tables:
        print(f"table {table.name}: {len(table.rows)} rows of {', '.join(table.columns)}")
    for made in result.envelope.artifacts if result.envelope else ():
        print(f"{made.ref}  {made.kind}  {made.size:,} bytes  {made.name}")
    for warning in (*result.warnings, *(result.envelope.warnings if result.envelope else ())):
        print(f"warning: {warning}", file=sys.stderr)


def _interval(ci95: tuple[float, float] | None) -> str:
    return "" if ci95 is None else f"{ci95[0]:.4g} to {ci95[1]:.4g}"


def _input(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageProblem(f"--input {text}: expected NAME=FILE or NAME=artifact:ID")
    if value.startswith("artifact:"):
        return name, value
    path = Path(value)
    if path.suffix == ".txt":
        return name, [line for line in _text(path).splitlines() if line.strip()]
    return name, _read(path)


def _object(path: Path) -> dict[str, Any]:
    found = _read(path)
    if not isinstance(found, dict):
        raise UsageProblem(f"{path} holds no object: expected parameters by name")
    return found


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(_text(path))  # of which JSON is a part
    except yaml.YAMLError as error:
        raise UsageProblem(f"{path} is neither JSON nor YAML: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{path}: {getattr(error, 'strerror', None) or 'no text'}") from None
