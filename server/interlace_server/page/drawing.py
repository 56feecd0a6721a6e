"""`python -m interlace_server.page.drawing METHOD < RESULT > PNG`: a result's picture, in a process of its own.

What a job gave is hostile: it may be huge, or wrong in ways that matplotlib takes minutes to find out. So it is drawn
where memory and time are bounded, and the gateway waits for no more than bytes.
"""

import io
import os
import resource
import sys

from interlace.methods import find

_MEMORY = 2 << 30  # bytes of address space, of which the libraries take a third
_SECONDS = 20  # of processor time
_MOST_INCHES = 24.0
_DOTS = 110  # an inch


def main() -> int:
    """0 with a PNG on stdout; else a sentence on stderr."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread would take some of it
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    figure = find(sys.argv[1]).result.model_validate_json(sys.stdin.buffer.read()).plot()
    width, height = figure.get_size_inches()
    if max(width, height) > _MOST_INCHES:
        shrink = _MOST_INCHES / max(width, height)
        figure.set_size_inches(width * shrink, height * shrink)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DOTS)
    sys.stdout.buffer.write(png.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
