"""`interlace deploy, scale, evict, models`: what a server hosts that runs, here or elsewhere, over HTTP."""

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interlace import Client
from interlace.protocol.hosting import ModelEvent, ModelView, Moment, Phase
from interlace.protocol.model import is_repo_id
from interlace_deploy.commands.jobs import client_of
from interlace_deploy.problems import CommandProblem, UsageProblem
from interlace_deploy.screen import Screen, show_table, utc
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import catalogue, local, naming

_LOOK = 0.5  # seconds
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SETTLED = (Phase.READY, Phase.IDLE, Phase.FAILED)


def list_(arguments: argparse.Namespace) -> int:
    """The command `models`: where each model of a server stands, and with `--follow` what happens to them."""
    with client_of(arguments) as client:
        if arguments.follow:
            return _tell(client.model_events(arguments.model and _named(arguments.model)), as_json=arguments.json)
        models = client.models() if arguments.model is None else [client.model(_named(arguments.model))]
    if arguments.json:
        print(json.dumps([model.model_dump(mode="json") for model in models], indent=2))
        return 0
    rows = [
        (
            model.model,
            model.phase + (", paused" if model.paused else ""),
            f"{model.replicas} of {_range(model.least, model.most)}",
            str(model.jobs),
            model.dtype if model.quantization is None else model.quantization,
            f"{model.resident_bytes / (1 << 20):,.0f} MiB",
            "pinned" if model.pin else "never" if model.idle_seconds is None else f"{model.idle_seconds:g} s",
            _doing(model),
        )
        for model in models
    ]
    show_table(("model", "phase", "replicas", "jobs", "weights", "memory", "leaves after", ""), rows)
    return 0


def deploy(arguments: argparse.Namespace) -> int:
    """Have a model hosted, and wait until it is ready. Raises CommandProblem if it cannot be."""
    named = ("repo_id", "revision", "task", "dtype", "quantization", "gpus", "device", "trusted")
    settings = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    if arguments.trusted:
        settings["executor"] = "resident"
    settings |= terms(arguments)
    settings.setdefault("repo_id", naming.name_of(ModelConfig(source=arguments.model)))
    if not is_repo_id(settings["repo_id"]):
        raise UsageProblem(f"{arguments.model!r}: say with --repo-id what clients shall write.")
    if settings["repo_id"] == arguments.model:
        del settings["repo_id"]  # the hub may write it in another way
    source = str(Path(arguments.model).expanduser().absolute()) if local.is_local(arguments.model) else arguments.model
    with client_of(arguments) as client:
        asked = client.deploy(source, **settings)
        return 0 if arguments.no_wait else _follow(client, asked)


def scale(arguments: argparse.Namespace) -> int:
    changes = terms(arguments)
    if not changes:
        raise UsageProblem("Nothing to change: give --replicas, --idle, --pin or --no-pin.")
    with client_of(arguments) as client:
        model = client.scale(_named(arguments.model), **changes)
    print(f"{model.model}: {_range(model.least, model.most)} replicas{_idle(model)}")
    if 0 < model.replicas < model.least:
        print(f"{model.replicas} of them run now: `interlace models` shows how the others come, or what they lack.")
    return 0


def evict(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as client:
        model = client.evict(_named(arguments.model), forget=arguments.forget)
    what = "is hosted no longer" if arguments.forget else "leaves the memory; the next job brings it back"
    print(f"{model.model} {what}.")
    return 0


def _named(model: str) -> str:
    """What clients write for it: `deploy` takes the short names of the catalogue, too, which servers do not know."""
    entry = catalogue.known(model)
    return model if entry is None else entry.repo_id


def _follow(client: Client, asked: ModelView) -> int:
    """Say what the model does until it is ready. Raises CommandProblem if it fails."""
    screen, said = Screen(), ""
    while True:
        model = next((one for one in client.models() if one.model.lower() == asked.model.lower()), None)
        if model is None:
            raise CommandProblem(f"{asked.model} is hosted no longer.")
        line = f"{model.phase}  {_doing(model)}".strip()
        if line != said and model.phase is not Phase.FAILED:  # of which the command's problem is told below
            said = line
            screen.say(line)
        if model.phase in _SETTLED or (model.phase is Phase.EVICTED and not model.least):
            break
        time.sleep(_LOOK)
    if model.phase is Phase.FAILED:
        raise CommandProblem(f"{model.model}: {model.text}")
    if model.replicas < model.least and not model.text:
        screen.say(f"{model.replicas} of {model.least} replicas run; `interlace models` follows the others.")
    print(model.model)
    return 0


def _tell(events: Iterator[tuple[str, ModelEvent]], *, as_json: bool) -> int:
    """Print a line for each event, until somebody interrupts it."""
    for _, event in events:
        moment = event.moment
        if as_json:
            print(event.model_dump_json(), flush=True)
        elif moment is None:
            print(f"{'':23}  {event.model}  is hosted no longer", flush=True)
        else:
            at = utc(moment.at)
            print(f"{at} UTC  {event.model}  {moment.phase}  {_doing(moment)}".rstrip(), flush=True)
    return 0


def terms(arguments: argparse.Namespace) -> dict[str, Any]:
    """`--replicas`, `--idle`, `--pin` in the words of the configuration. Raises UsageProblem."""
    terms: dict[str, Any] = {}
    if arguments.idle is not None:
        terms["idle_seconds"] = None if arguments.idle == "never" else seconds(arguments.idle)
    if arguments.replicas is not None:
        match = re.fullmatch(r"(\d+)(?::(\d+))?", arguments.replicas)
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if least > most or most < 1:
            raise UsageProblem(f"--replicas {arguments.replicas}: expected a number, or MIN:MAX such as 0:2.")
        if least == most:
            terms["replicas"] = most
        else:
            idle = {"idle_seconds": terms["idle_seconds"]} if terms.get("idle_seconds") is not None else {}
            terms["autoscale"] = {"least": least, "most": most, **idle}
    if arguments.pin is not None:
        terms["pin"] = arguments.pin
    return terms


def seconds(text: str) -> float:
    """``30m`` as seconds. Raises UsageProblem."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise UsageProblem(f"{text!r}: expected a time such as 90s, 30m, 2h or 1d.")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _range(least: int, most: int) -> str:
    return str(most) if least == most else f"{least}:{most}"


def _idle(model: ModelView) -> str:
    if model.pin:
        return ", pinned"
    return "" if model.idle_seconds is None else f", leaves the memory after {model.idle_seconds:g} s without a job"


def _doing(model: ModelView | Moment) -> str:
    if model.phase is Phase.DOWNLOADING and model.bytes_total:
        return f"{(model.bytes_done or 0) / 1e6:,.0f} of {model.bytes_total / 1e6:,.0f} MB"
    return model.text
