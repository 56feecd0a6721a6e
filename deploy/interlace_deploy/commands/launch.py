"""What comes before a command's own imports: whose hub is asked, which its library reads once; and of `interlace up`
the first model's process, since it takes longest."""

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


def pull(arguments: argparse.Namespace) -> int:
    """The command `models pull`. Raises CommandProblem at the end for those that cannot be had."""
    leave_own_hub()
    return int(import_module("interlace_deploy.commands.models").pull(arguments))
