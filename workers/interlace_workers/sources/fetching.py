"""A download from the hub in a process of its own, which can be ended: in this one it would run to its last byte."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from interlace_workers.sources.source import SourceError, Tell

_LOOK = 0.5  # seconds
_RUN = "from interlace_workers.sources.fetching import main; main()"


def fetch(repo_id: str, revision: str, names: Sequence[str], total: int, tell: Tell) -> Path:
    """Get these files into the hub's cache; the folder of their snapshot. Blocks.

    Tells twice a second how many of ``total`` bytes have come; what ``tell`` raises ends the download, whose bytes
    stay for the next one. Raises that, and SourceError.
    """
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    before, command = _bytes(blobs), [sys.executable, "-P", "-c", _RUN]
    wish: str | None = json.dumps({"repo_id": repo_id, "revision": revision, "names": list(names)})
    pipe = subprocess.PIPE
    # A session of its own: a terminal's Ctrl-C is for us to heed.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            while True:
                tell(min(total, max(0, _bytes(blobs) - before)), total)
                try:
                    said, _ = process.communicate(wish, timeout=_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    wish = None  # it has it
        finally:
            process.kill()
    if process.returncode != 0:
        raise SourceError(f"The download of {repo_id} ended with code {process.returncode}.")
    answer = json.loads(said)
    if "failed" in answer:
        raise SourceError(answer["failed"])
    return Path(answer["folder"])


def main() -> None:
    """What that process runs: from what to fetch, as JSON, to the folder, or to why there is none."""
    wish = json.load(sys.stdin)
    repo_id, revision = wish["repo_id"], wish["revision"]
    try:
        answer = {"folder": snapshot_download(repo_id, revision=revision, allow_patterns=wish["names"])}
    except Exception as error:  # noqa: BLE001  the process's edge: whatever it is, who waits must hear of it
        answer = {"failed": why(error, repo_id, revision)}
    print(json.dumps(answer))


def why(error: Exception, repo_id: str, revision: str) -> str:
    """What the hub, or the way to it, had against it, and what to type."""
    cache = constants.HF_HUB_CACHE
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated: accept its terms at {constants.ENDPOINT}/{repo_id}, log in on this machine with "
            "`hf auth login`, and start again."
        )
    if isinstance(error, RepositoryNotFoundError):
        folder = f", and for the folder of that name type `./{repo_id}`" if Path(repo_id).is_dir() else ""
        return (
            f"The hub ({constants.ENDPOINT}) has no model {repo_id} that you may read. Check the spelling; "
            f"for a private one, log in with `hf auth login`{folder}."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}. Set `revision` to a branch, a tag or a commit of it."
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{repo_id} is not complete in the local Hugging Face cache ({cache}), and HF_HUB_OFFLINE forbids to "
            f"download it. Unset HF_HUB_OFFLINE, or type `interlace models pull {repo_id}` where there is a network."
        )
    return (
        f"{repo_id} is not complete in the local Hugging Face cache ({cache}), and the hub ({constants.ENDPOINT}) "
        f"did not give it: {str(error).strip() or type(error).__name__}. Check the network, or host a folder "
        "(`--model ./FOLDER`) or the model that a package index ships (`--model smollm2-135m-instruct`)."
    )


def _bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # it is not there yet, or a file has just got its name
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
    return total
