"""Where a notebook shows what a run shows on its way."""

import sys
from typing import Any


class Display:
    """The newest picture, each in the place of the last. Outside of a notebook nothing is shown."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, png: bytes) -> None:
        ipython: Any = sys.modules.get("IPython")  # who runs in a notebook has it loaded
        if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
            return
        picture = ipython.display.Image(png)
        if self._handle is None:
            self._handle = ipython.display.display(picture, display_id=True)
        else:
            self._handle.update(picture)
