"""A tiny model as a worker's process has it."""

from pathlib import Path

import tiny

from interlace_workers.child.loading.model import HostedModel, load
from interlace_workers.order import Load


def hosted(hub: Path, repo_id: str) -> HostedModel:
    """One of the fixture `families`, loaded."""
    (path,) = (hub / f"models--{repo_id.replace('/', '--')}" / "snapshots").iterdir()
    return load(Load(str(path), tiny.task_of(repo_id), "float32", trust_remote_code=False, threads=1))
