"""How far a download has come: what lies in the cache's folder of the repository."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from interlace_workers.sources.source import Tell

_LOOK = 0.5  # seconds


@contextmanager
def watching(repo_id: str, total: int, tell: Tell | None) -> Iterator[None]:
    """Tell twice a second how many of ``total`` bytes have come, while the block runs."""
    if tell is None:
        yield
        return
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    before, done = _bytes(blobs), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            tell(min(total, max(0, _bytes(blobs) - before)), total)

    watcher = threading.Thread(target=watch, name="download", daemon=True)
    tell(0, total)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # it is not there yet, or a file has just got its name
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
    return total
