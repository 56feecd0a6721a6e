"""What a notebook shows: pictures of a run on its way, and the figure of its result."""

import io
import sys
from functools import partial
from typing import Any


def drawn_by_notebooks(figure: Any) -> Any:
    """A figure of matplotlib that a notebook draws where it is the last value of a cell.

    IPython itself draws figures only once pyplot is loaded, which ours are made without.
    """
    figure._repr_png_ = partial(_png, figure)
    return figure


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


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
