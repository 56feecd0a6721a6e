"""`interlace jobs, logs, cancel, admin`: jobs and switches of a server that runs, here or elsewhere, over HTTP."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from interlace import Client, Unreachable
from interlace.protocol.errors import InterlaceError
from interlace.protocol.event import Ended, Log
from interlace.protocol.job import JobState
from interlace.protocol.jobs import JobView
from interlace_deploy.problems import CommandProblem, NotRunning, UsageProblem
from interlace_deploy.screen import show_table, utc
from interlace_deploy.target import target

_LOCAL = "local"  # the tenant of those who need no key


def list_(arguments: argparse.Namespace) -> int:
    """The newest jobs: own ones, or with `--all` those of every tenant."""
    with client_of(arguments) as client:
        tenant = None if arguments.all else _own_tenant(client)
        found = client.jobs(state=arguments.state, model=arguments.model, tenant=tenant)
        jobs = list(islice(found, arguments.limit))
    if arguments.json:
        print(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2))
        return 0
    rows = [
        (job.id, job.tenant, job.model, job.state, utc(job.submitted), _took(job), job.method or "", _note(job))
        for job in jobs
    ]
    show_table(("id", "tenant", "model", "state", "submitted, UTC", "took", "method", ""), rows)
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """What a job printed; with `--follow` until it ends, and 1 if it was not completed."""
    with client_of(arguments) as client:
        for _, event in client.events(arguments.id, follow=arguments.follow):
            if isinstance(event, Log):
                print(_plain(event.text) if sys.stdout.isatty() else event.text, flush=True)
            elif isinstance(event, Ended) and arguments.follow:
                print(f"{event.state}: {_plain(event.text)}" if event.text else event.state, file=sys.stderr)
                return 0 if event.state is JobState.COMPLETED else 1
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Stop jobs; one that had ended is left as it is."""
    problems = []
    with client_of(arguments) as client:
        for job_id in arguments.ids:
            try:
                before = client.job(job_id)
                now = client.cancel(job_id)
                # A method that runs first ends with what it has.
                said = now.state if now.state.ended else _plain(now.text)
                print(f"{job_id} {'had ended: ' if before.state.ended else ''}{said}", flush=True)
            except Unreachable:
                raise
            except InterlaceError as error:
                problems.append(str(error))
    if problems:
        raise CommandProblem("\n".join(problems))
    return 0


def pause(arguments: argparse.Namespace) -> int:
    return _switch(arguments, lambda client: client.pause(arguments.model), "{model} is paused: its jobs wait.")


def resume(arguments: argparse.Namespace) -> int:
    return _switch(arguments, lambda client: client.resume(arguments.model), "{model} starts jobs again.")


def drain(arguments: argparse.Namespace) -> int:
    said = "{replica} takes no more jobs; those that it runs end."
    return _switch(arguments, lambda client: client.drain(arguments.replica), said)


def undrain(arguments: argparse.Namespace) -> int:
    return _switch(arguments, lambda client: client.undrain(arguments.replica), "{replica} takes jobs again.")


def weight(arguments: argparse.Namespace) -> int:
    """Show a tenant's weight, or set it."""
    if arguments.weight is None:
        return _switch(arguments, lambda client: client.tenant(arguments.tenant), "{tenant}: weight {weight:g}")
    change = lambda client: client.set_tenant(arguments.tenant, weight=arguments.weight)  # noqa: E731
    return _switch(arguments, change, "{tenant}: weight {weight:g}")


def limits(arguments: argparse.Namespace) -> int:
    """Show what was set for a tenant at run time, or change some of it; `NAME=` takes a limit back."""
    changes = dict(map(_limit, arguments.limits))
    with client_of(arguments) as client:
        found = client.tenant(arguments.tenant)
        if changes:
            merged = {name: value for name, value in {**found["limits"], **changes}.items() if value is not None}
            found = client.set_tenant(arguments.tenant, limits=merged)
    named = [f"{name}={value:.15g}" for name, value in found["limits"].items() if value is not None]
    print(f"{found['tenant']}: {' '.join(named) or 'as configured'}")
    return 0


def _limit(text: str) -> tuple[str, float | None]:
    name, equals, value = text.partition("=")
    try:
        if equals:
            return name, float(value) if value else None
    except ValueError:
        pass
    raise UsageProblem(f"{text!r}: expected NAME=NUMBER, such as running_jobs=4, or NAME= to take a limit back")


def _switch(arguments: argparse.Namespace, turn: Callable[[Client], Mapping[str, Any]], said: str) -> int:
    with client_of(arguments) as client:
        print(said.format(**turn(client)))
    return 0


@contextmanager
def client_of(arguments: argparse.Namespace) -> Iterator[Client]:
    """A client of the server that is meant. What goes wrong with it is said as a problem of the command."""
    try:
        with Client(target(arguments).url, _key(arguments.key_file)) as client:
            yield client
    except Unreachable as error:
        raise NotRunning(f"{error}. Start one with `interlace up`, or name another: --url, or NDIF_HOST.") from None
    except InterlaceError as error:
        hint = " Here, --key-file FILE names a file with the key, too." if error.http_status == 401 else ""
        raise CommandProblem(f"{error}{hint}") from None


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    if str(file) == "-":
        return sys.stdin.read().strip()
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"--key-file {file}: {getattr(error, 'strerror', None) or 'no text'}") from None


def _own_tenant(client: Client) -> str:
    return str(client.whoami()["email"] or _LOCAL)


def _took(job: JobView) -> str:
    """Seconds since a worker took it, until its end or until now."""
    return "" if job.started is None else f"{max(0.0, (job.ended or time.time()) - job.started):.1f} s"


def _note(job: JobView) -> str:
    if job.place is not None:
        when = "" if job.place.seconds is None else f", about {job.place.seconds:.0f} s"
        why = f"; {job.place.reason}" if job.place.reason else ""
        return f"{job.place.ahead} ahead{when}{why}"
    if job.progress is not None:
        return job.progress.sentence
    return _plain(job.reason)


def _plain(text: str) -> str:
    """Without what a terminal would obey: others' jobs print what they like."""
    return "".join(one if one.isprintable() or one in "\t\n" else one.encode("unicode_escape").decode() for one in text)
