"""The `interlace` command: what can be typed, and which module answers it."""

import argparse
import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import NoReturn

from interlace_deploy.problems import CommandProblem, UsageProblem

#: What `interlace lake` is asked for.
LAKE = (
    *("search", "show", "lineage", "versions", "cite", "tag", "untag", "share", "declare", "delete"),
    *("compare", "import", "export", "rebuild"),
)
#: Only the module of the command that was typed is imported: some bring much with them.
_COMMANDS = {
    "up": "interlace_deploy.commands.launch:up",
    "down": "interlace_deploy.commands.detach:down",
    "status": "interlace_deploy.commands.status:run",
    "doctor": "interlace_deploy.commands.doctor:run",
    "models": "interlace_deploy.commands.hosting:list_",
    **{word: f"interlace_deploy.commands.hosting:{word}" for word in ("deploy", "evict", "scale")},
    "models pull": "interlace_deploy.commands.launch:pull",
    "models list": "interlace_deploy.commands.models:list_",
    "keys create": "interlace_deploy.commands.keys:create",
    "keys list": "interlace_deploy.commands.keys:list_",
    "keys revoke": "interlace_deploy.commands.keys:revoke",
    "keys rotate": "interlace_deploy.commands.keys:rotate",
    "jobs": "interlace_deploy.commands.jobs:list_",
    "logs": "interlace_deploy.commands.jobs:logs",
    "cancel": "interlace_deploy.commands.jobs:cancel",
    **{f"admin {word}": f"interlace_deploy.commands.jobs:{word}" for word in ("pause", "resume", "drain", "undrain")},
    "admin weight": "interlace_deploy.commands.jobs:weight",
    "admin limits": "interlace_deploy.commands.jobs:limits",
    "methods": "interlace_deploy.commands.methods:list_",
    "methods show": "interlace_deploy.commands.methods:show",
    "run": "interlace_deploy.commands.methods:run",
    "backup": "interlace_deploy.commands.backup:save",
    "restore": "interlace_deploy.commands.backup:load",
    **{f"artifacts {word}": f"interlace_deploy.commands.artifacts:{word}" for word in ("upload", "download", "delete")},
    "artifacts list": "interlace_deploy.commands.artifacts:list_",
    **{f"lake {word}": f"interlace_deploy.commands.lake:{word.replace('import', 'import_')}" for word in LAKE},
    "lake rebuild": "interlace_deploy.commands.lake_index:rebuild",
    "demo": "interlace_deploy.commands.demo:run",
}
KINDS = ("peft", "diffusers-lora", "edit", "sae", "probe", "circuit", "data", "texts", "images", "weights", "sketch")
_URL = "the server (default: $NDIF_HOST, or what runs here with this configuration)"
#: Which extra brings what a command may lack; `all` the rest.
_EXTRAS = {
    **dict.fromkeys(("httpx", "websocket"), "commands"),
    **dict.fromkeys(("redis", "fsspec", "yaml"), "state"),
    "matplotlib": "pictures",
}
_INTERRUPTED = 130  # what shells report for Ctrl-C
_UNREAD = 141  # ... and for SIGPIPE


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0, 1 it failed, 2 a wrong option or configuration, 3 nothing runs."""
    words = sys.argv[1:] if words is None else words
    arguments = _parser().parse_args(["version"] if words == ["--version"] else words)
    arguments.words = list(words)
    if arguments.command == "version":
        print(importlib.metadata.version("interlace"))
        return 0
    try:
        module, _, attribute = _COMMANDS[arguments.command].partition(":")
        code: int = getattr(import_module(module), attribute)(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `interlace jobs | head`: its reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return _UNREAD
    except CommandProblem as problem:
        print(f"interlace: {problem}", file=sys.stderr)
        return problem.code
    except ModuleNotFoundError as error:
        lacks = (error.name or "").partition(".")[0]
        if not lacks or lacks.startswith("interlace"):
            raise
        remedy = f"pip install 'interlace[{_EXTRAS.get(lacks, 'all')}]'"
        print(
            f"interlace: `interlace {arguments.command}` needs `{lacks}`, which is not installed: {remedy}",
            file=sys.stderr,
        )
        return CommandProblem.code
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(UsageProblem.code, f"interlace: {message} (see `{self.prog} --help`)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="interlace", description="Remote intervention in hosted models.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(commands)
    _add(commands, "down", "stop what `interlace up` started with this configuration")
    status = _add(commands, "status", "show the models that are hosted and how they are")
    status.add_argument("--url", help=_URL)
    status.add_argument("--json", action="store_true", help="for programs")
    _add(commands, "doctor", "show what is installed, what is missing, and what to type").add_argument(
        "--json", action="store_true", help="for programs"
    )
    commands.add_parser("version", help="show the version", allow_abbrev=False)
    _add_models(commands)
    _add_hosting(commands)
    _add_keys(commands)
    _add_jobs(commands)
    _add_methods(commands)
    _add_artifacts(commands)
    _add_lake(commands)
    _add_admin(commands)
    for name, summary in (
        ("backup", "copy jobs, keys, results and artifacts into a folder, whether Interlace runs or not"),
        ("restore", "put a backup back into a Redis that holds nothing of ours; not while Interlace runs"),
    ):
        _add(commands, name, summary).add_argument("folder", type=Path, metavar="FOLDER")
    demo = _add(commands, "demo", "host the default model, run examples/first_trace.py against it, stop")
    demo.add_argument("--runtime", choices=("ray", "process"), help="what hosts the replica")
    return parser


def _add(commands: "argparse._SubParsersAction[_Parser]", name: str, summary: str) -> _Parser:
    command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    command.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML configuration (default: $INTERLACE_CONFIG, ./interlace.yaml if it is there)",
    )
    return command


def _add_up(commands: "argparse._SubParsersAction[_Parser]") -> None:
    up = _add(commands, "up", "start Redis, gateway and workers; Ctrl-C stops all that was started")
    up.add_argument(
        "--model",
        action="append",
        metavar="REPO|PATH|PACKAGE|NAME",
        help="a model to host, in place of the configured ones; may be given several times",
    )
    up.add_argument(
        "--task",
        metavar="TASK",
        help="the transformers task of `--model`, such as image-classification (default: text-generation)",
    )
    up.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    up.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: 8000)")
    up.add_argument("--runtime", choices=("ray", "process"), help="what hosts the replicas (default: ray)")
    up.add_argument("--detach", action="store_true", help="return when ready; `interlace down` stops it")


def _add_keys(commands: "argparse._SubParsersAction[_Parser]") -> None:
    keys = commands.add_parser("keys", help="make, list and revoke API keys", allow_abbrev=False)
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = _add(actions, "create", "make a key and print it, once")
    create.add_argument("--tenant", required=True, metavar="NAME", help="whose jobs and results it reaches")
    create.add_argument("--role", choices=("user", "admin"), default="user")
    create.add_argument("--models", nargs="+", metavar="REPO", help="the models that it reaches (default: all)")
    create.add_argument("--expires", metavar="30d|12h|DATE", help="when it ends, a date in UTC (default: never)")
    create.set_defaults(command="keys create")
    listing = _add(actions, "list", "list the keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(command="keys list")
    revoke = _add(actions, "revoke", "end a key at once")
    revoke.add_argument("id", metavar="ID")
    revoke.set_defaults(command="keys revoke")
    rotate = _add(actions, "rotate", "make a key in place of another, which works for a while yet")
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument("--overlap", default="1h", metavar="1h", help="how long the old one still works")
    rotate.set_defaults(command="keys rotate")


def _add_models(commands: "argparse._SubParsersAction[_Parser]") -> None:
    models = _add_remote(commands, "models", "show the models of a server; or fetch and list files on this machine")
    models.add_argument("--model", metavar="REPO|SLUG", help="only this one")
    models.add_argument("-f", "--follow", action="store_true", help="show what has happened to them, and what happens")
    models.add_argument("--json", action="store_true", help="for programs")
    models.set_defaults(command="models")
    actions = models.add_subparsers(dest="action", metavar="ACTION")
    pull = _add(actions, "pull", "fetch models, and convert them where that is needed")
    pull.add_argument("models", nargs="+", metavar="REPO|PATH|PACKAGE|NAME")
    pull.set_defaults(command="models pull")
    listing = _add(actions, "list", "list the known models and those that are on this machine")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(command="models list")


def _add_hosting(commands: "argparse._SubParsersAction[_Parser]") -> None:
    deploy = _add_remote(commands, "deploy", "have a server that runs host a model")
    deploy.add_argument("model", metavar="REPO|PATH|PACKAGE|NAME")
    deploy.add_argument("--repo-id", metavar="REPO", help="what clients write (default: as with `up --model`)")
    deploy.add_argument("--revision", help="branch, tag or commit on the hub (default: main)")
    deploy.add_argument("--task", help="the transformers pipeline task (default: text-generation)")
    deploy.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "auto"))
    deploy.add_argument(
        "--quantization", choices=("int8", "nf4", "fp4", "fp8"), help="hold the weights in fewer bits; fp8 needs a GPU"
    )
    deploy.add_argument("--gpus", type=float, metavar="N", help="GPUs of a replica (default: 0)")
    deploy.add_argument("--device", metavar="cpu|cuda|cuda:N|auto", help="of a resident model (default: cpu)")
    deploy.add_argument(
        "--trusted", nargs="+", metavar="TENANT", help="hold it resident: jobs of these tenants only, and unprotected"
    )
    deploy.add_argument("--no-wait", action="store_true", help="return at once; `interlace models` shows how it goes")
    scale = _add_remote(
        commands, "scale", "change how many replicas run, for how long it may be idle, whether it stays"
    )
    scale.add_argument("model", metavar="REPO|SLUG")
    for command in (deploy, scale):
        command.add_argument("--replicas", metavar="N|MIN:MAX", help="how many run; by need, between two numbers")
        command.add_argument("--idle", metavar="30m|2h|never", help="leave the memory after so long without a job")
        command.add_argument(
            "--pin", action=argparse.BooleanOptionalAction, default=None, help="never leave the memory"
        )
    evict = _add_remote(commands, "evict", "take a model out of memory; the next job brings it back")
    evict.add_argument("model", metavar="REPO|SLUG")
    evict.add_argument("--forget", action="store_true", help="host it no longer; its jobs end")


def _add_remote(commands: "argparse._SubParsersAction[_Parser]", name: str, summary: str) -> _Parser:
    """A command that asks a server over HTTP."""
    command = _add(commands, name, summary)
    command.add_argument("--url", help=_URL)
    command.add_argument(
        "--key-file", type=Path, metavar="FILE", help="a file with the API key, - for stdin (default: $NDIF_API_KEY)"
    )
    return command


def _add_jobs(commands: "argparse._SubParsersAction[_Parser]") -> None:
    jobs = _add_remote(commands, "jobs", "list jobs, the newest first")
    jobs.add_argument("--all", action="store_true", help="those of all tenants, with an admin's key")
    states = ("received", "queued", "leased", "running", "completed", "error", "cancelled")
    jobs.add_argument("--state", choices=states, help="only jobs in this state")
    jobs.add_argument("--model", metavar="REPO", help="only jobs of this model")
    jobs.add_argument("--limit", type=_count, default=50, metavar="N", help="how many at most (default: 50)")
    jobs.add_argument("--json", action="store_true", help="for programs")
    logs = _add_remote(commands, "logs", "show what a job printed")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends; fails if it is not completed")
    logs.add_argument("id", metavar="ID")
    cancel = _add_remote(commands, "cancel", "stop jobs that wait or run")
    cancel.add_argument("ids", nargs="+", metavar="ID")


def _add_methods(commands: "argparse._SubParsersAction[_Parser]") -> None:
    methods = _add_remote(commands, "methods", "list the methods that a server has, or show one")
    methods.add_argument("--json", action="store_true", help="for programs")
    actions = methods.add_subparsers(dest="action", metavar="ACTION")
    show = _add_remote(actions, "show", "show what a method takes and gives")
    show.add_argument("method", metavar="METHOD")
    show.add_argument("--json", action="store_true", help="all of it, with JSON schemas")
    show.set_defaults(command="methods show")
    run = _add_remote(commands, "run", "run a method next to a hosted model")
    run.add_argument("method", metavar="METHOD", help="NAME, or NAME@VERSION")
    run.add_argument("--model", required=True, metavar="REPO|SLUG")
    run.add_argument("--params", type=Path, metavar="FILE", help="what it takes: an object, as JSON or YAML")
    run.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="one of its parameters: JSON, YAML, texts line by line (.txt), or artifact:ID in place of a file",
    )
    run.add_argument("--edit", action="append", default=[], metavar="ARTIFACT", help="an edit that is on meanwhile")
    run.add_argument("--seed", type=int, default=0, metavar="N")
    run.add_argument("--follow", action="store_true", help="show how far it is, and its result; Ctrl-C cancels it")
    run.add_argument("--dry-run", action="store_true", help="run nothing, and show what it would cost")
    run.add_argument("--json", action="store_true", help="with --follow: the whole result, for programs")


def _add_artifacts(commands: "argparse._SubParsersAction[_Parser]") -> None:
    artifacts = commands.add_parser("artifacts", help="keep adapters, texts and more on a server", allow_abbrev=False)
    actions = artifacts.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _add_remote(actions, "list", "list what is there, the newest first")
    listing.add_argument("--json", action="store_true", help="for programs")
    upload = _add_remote(actions, "upload", "upload an artifact, and print its name for requests")
    upload.add_argument("folder", type=Path, metavar="FOLDER", help="with the files of its kind")
    upload.add_argument("--kind", choices=KINDS, default="peft")
    upload.add_argument("--name", default="", help="for people (default: the folder's)")
    upload.add_argument("--model", metavar="REPO|SLUG", help="the hosted model that it is for (default: as it says)")
    download = _add_remote(actions, "download", "fetch an artifact's files")
    download.add_argument("artifact", metavar="ARTIFACT")
    download.add_argument("folder", type=Path, metavar="FOLDER")
    delete = _add_remote(actions, "delete", "remove artifacts for good")
    delete.add_argument("artifacts", nargs="+", metavar="ARTIFACT")
    for name, action in (("list", listing), ("upload", upload), ("download", download), ("delete", delete)):
        action.set_defaults(command=f"artifacts {name}")


def _add_lake(commands: "argparse._SubParsersAction[_Parser]") -> None:
    lake = commands.add_parser("lake", help="search and describe all that is hosted or was made", allow_abbrev=False)
    actions = lake.add_subparsers(dest="action", required=True, metavar="ACTION")
    given: dict[str, _Parser] = {}
    for name, summary in (
        ("search", "find by words and filters, such as `kind:peft works-with:REPO metric:loss<0.5 sort:-accuracy`"),
        ("show", "show a card: all that is known, each statement with who says it"),
        ("lineage", "show what something came of and what came of it"),
        ("versions", "list those of the same owner and name"),
        ("cite", "print BibTeX with the hash, and the call that makes it again"),
        ("tag", "have a tag point to an artifact, wherever it pointed before"),
        ("untag", "take a tag off"),
        ("share", "say who sees an artifact"),
        ("declare", "say something of an artifact, such as license=mit; NAME= takes it back"),
        ("delete", "remove artifacts; tombstones stay in lineage"),
        ("compare", "compare two by record, and by weights and behaviour with --measure"),
        ("import", "take in a folder or a hub repository: PEFT, diffusers LoRA, SAELens, a whole small model"),
        ("export", "write an artifact as its libraries load it, with a model card"),
    ):
        given[name] = action = _add_remote(actions, name, summary)
        action.set_defaults(command=f"lake {name}")
        if name not in ("search", "import", "delete", "compare"):
            action.add_argument("entry", metavar="ENTRY", help="an id, artifact:ID, or lake://OWNER/NAME[@HASH|:TAG]")
        if name in ("search", "show", "lineage", "versions", "compare"):
            action.add_argument("--json", action="store_true", help="for programs")
    given["search"].add_argument("query", nargs="*", metavar="WORD|FIELD:VALUE")
    given["search"].add_argument("--limit", type=_count, default=20, metavar="N")
    given["lineage"].add_argument("--depth", type=_count, default=3, metavar="N")
    given["delete"].add_argument("entries", nargs="+", metavar="ENTRY")
    given["compare"].add_argument("entries", nargs=2, metavar="ENTRY")
    given["compare"].add_argument("--measure", action="store_true", help="run `lake.compare` next to the weights")
    for name in ("tag", "untag"):
        given[name].add_argument("tag", metavar="TAG")
    given["share"].add_argument("visibility", choices=("private", "tenant", "public"))
    given["declare"].add_argument("said", nargs="+", metavar="NAME=TEXT")
    given["import"].add_argument("source", metavar="FOLDER|REPO")
    given["import"].add_argument("--model", metavar="REPO|SLUG", help="the hosted model that it is for")
    given["export"].add_argument("folder", type=Path, metavar="FOLDER")
    rebuild = _add(actions, "rebuild", "make the index in Redis anew from the store, whether Interlace runs or not")
    rebuild.set_defaults(command="lake rebuild")


def _add_admin(commands: "argparse._SubParsersAction[_Parser]") -> None:
    admin = commands.add_parser("admin", help="change a server while it runs", allow_abbrev=False)
    actions = admin.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, what, summary in (
        ("pause", "model", "start no more jobs of a model; they wait"),
        ("resume", "model", "start a paused model's jobs again"),
        ("drain", "replica", "give a replica no more jobs"),
        ("undrain", "replica", "give a drained replica jobs again"),
        ("weight", "tenant", "show or set a tenant's share beside others that wait"),
        ("limits", "tenant", "show or set a tenant's limits, over those of the configuration"),
    ):
        action = _add_remote(actions, name, summary)
        action.add_argument(what, metavar={"model": "REPO|SLUG"}.get(what, what.upper()))
        action.set_defaults(command=f"admin {name}")
        if name == "weight":
            action.add_argument("weight", nargs="?", type=_weight, metavar="N", help="1 is usual")
        elif name == "limits":
            action.add_argument(
                "limits", nargs="*", metavar="NAME=N", help="as in the configuration; NAME= takes it back"
            )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1")
    return int(text)


def _weight(text: str) -> float:
    with contextlib.suppress(ValueError):
        if isfinite(weight := float(text)):
            return weight
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number")
