"""`interlace artifacts`: adapters that are kept on a server, over HTTP."""

import argparse
import json

from interlace_deploy.commands.jobs import client_of
from interlace_deploy.screen import show_table, utc


def list_(arguments: argparse.Namespace) -> int:
    """One's artifacts, the newest first."""
    with client_of(arguments) as server:
        artifacts = server.artifacts.all()
    if arguments.json:
        print(json.dumps([one.model_dump(mode="json") for one in artifacts], indent=2))
        return 0
    rows = [
        (
            f"artifact:{one.id}",
            one.kind,
            one.name,
            one.base.repo_id if one.base else "",
            f"{one.size / 1e6:,.1f} MB" if one.size >= 1e6 else f"{one.size / 1e3:,.1f} kB",
            utc(one.created),
        )
        for one in artifacts
    ]
    show_table(("name in a request", "kind", "called", "for", "size", "uploaded, UTC"), rows)
    return 0


def upload(arguments: argparse.Namespace) -> int:
    """Upload a folder, and print what names it in a request."""
    with client_of(arguments) as server:
        found = server.artifacts.upload(
            arguments.folder, kind=arguments.kind, name=arguments.name, model=arguments.model
        )
    print(found.ref)
    return 0


def download(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        print(server.artifacts.download(arguments.artifact, arguments.folder))
    return 0


def delete(arguments: argparse.Namespace) -> int:
    with client_of(arguments) as server:
        for artifact in arguments.artifacts:
            server.artifacts.delete(artifact)
            print(f"{artifact} is gone")
    return 0
