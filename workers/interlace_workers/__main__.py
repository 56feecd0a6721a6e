"""``python -m interlace_workers --config FILE``: host the configured models until SIGTERM.

The first model's process is started before all else, our own imports included, unless whoever starts us has done it
already: it takes longest.
"""

import sys
from importlib import import_module

from interlace_workers.spawn import inherited, spawn

if __name__ == "__main__":
    first = inherited(sys.argv) or spawn()
    import_module("interlace_workers.placement.placer").main(first)
