"""`interlace models`: fetch models ahead of need, and list those that are here."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from interlace_deploy.problems import CommandProblem
from interlace_deploy.screen import Screen, show_table
from interlace_deploy.settings import read
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import catalogue, resolving
from interlace_workers.sources.source import SourceError


@dataclass(frozen=True)
class Known:
    """A model that can be hosted by this name."""

    name: str
    repo_id: str
    #: Where it lies; None while it is not here.
    path: str | None
    size_bytes: int


def pull(arguments: argparse.Namespace) -> int:
    """The command `models pull`. Raises CommandProblem at the end for those that cannot be had."""
    config = read(arguments.config, os.environ)
    screen = Screen()
    failures: list[str] = []
    for name in arguments.models:
        try:
            source = resolving.resolve(ModelConfig(source=name), config.cache_dir, screen.say)
        except SourceError as error:
            failures.append(f"{name}: {error}")
        else:
            print(f"{source.repo_id}  {source.path}  {_size(source.size_bytes)}")
    if failures:
        raise CommandProblem("\n".join(failures))
    return 0


def list_(arguments: argparse.Namespace) -> int:
    """The command `models list`."""
    known = models(read(arguments.config, os.environ).cache_dir)
    if arguments.json:
        print(json.dumps([vars(model) for model in known], indent=2))
        return 0
    rows = [
        (model.name, model.repo_id, _size(model.size_bytes) if model.path else "", model.path or "not here yet")
        for model in known
    ]
    show_table(("name", "clients write", "size", "where"), rows)
    return 0


def models(cache_dir: Path) -> list[Known]:
    """What Interlace knows by a short name, then all else that is in a cache of this machine."""
    here = resolving.cached(cache_dir)
    known: list[Known] = []
    for name, entry in catalogue.CATALOGUE.items():
        found = next((model for model in here if model.name == entry.repo_id and cache_dir in model.path.parents), None)
        known.append(Known(name, entry.repo_id, str(found.path) if found else None, found.size_bytes if found else 0))
    listed = {model.path for model in known}
    others = [model for model in here if str(model.path) not in listed]
    return known + [Known(model.name, model.name, str(model.path), model.size_bytes) for model in others]


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
