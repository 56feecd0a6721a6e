"""`python -m interlace_workers.sandbox`: try every layer here and print, as JSON, which work and why others do not."""

import json
import os

from interlace_workers.sandbox import ESSENTIAL, Sandbox


def main() -> None:
    sandbox = Sandbox("available", hidden=os.sep)
    sandbox.prepare()
    essential = [name for name in ESSENTIAL if name in sandbox.missing]
    print(json.dumps({"layers": sandbox.layers, "missing": sandbox.missing, "essential": essential}))


if __name__ == "__main__":
    main()
