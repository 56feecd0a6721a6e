"""`interlace up`, first step: the first model's process starts before even our own imports, since it takes longest."""

import argparse
from importlib import import_module

from interlace_deploy.own_hub import leave_own_hub
from interlace_deploy.parts.ahead import started


def up(arguments: argparse.Namespace) -> int:
    """The command. Raises CommandProblem."""
    leave_own_hub()
    if arguments.detach:  # who starts the parts is another process
        return int(import_module("interlace_deploy.commands.up").run(arguments))
    with started() as ahead:
        return int(import_module("interlace_deploy.commands.up").run(arguments, ahead))
