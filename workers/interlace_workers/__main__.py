"""``python -m interlace_workers --config FILE``: host the configured models until SIGTERM.

The first model's process is started before all else, our own imports included: it takes longest.
"""

from importlib import import_module

from interlace_workers.spawn import spawn

if __name__ == "__main__":
    first = spawn()
    import_module("interlace_workers.placement.placer").main(first)
