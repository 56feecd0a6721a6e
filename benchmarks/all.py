"""Every benchmark in its short form, one after the other; the figures go to benchmarks/results/DATE/.

    python benchmarks/all.py [NAME ...]

Some ten minutes on two cores; a machine that does nothing else gives figures that mean something. `soak.py` is not
among them: it takes as long as one lets it.
"""

import datetime
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent
#: Each benchmark's options for its short form.
SHORT = {
    "minimal_trace": ["--rounds", "30"],
    "own_client": ["--rounds", "25"],
    "generation": ["--rounds", "5"],
    "merging": [],
    "adapters": [],
    "streaming": [],
    "large_results": [],
    "replicas": [],
    "connections": [],
    "isolation": [],
    "fairness": [],
    "model_life": [],
    "mapped_weights": [],
    "quantized": ["--rounds", "5"],
    "page": [],
}


def main(names: list[str]) -> int:
    if unknown := sorted(set(names) - set(SHORT)):
        print(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(SHORT)}", file=sys.stderr)
        return 2
    folder = Path("benchmarks", "results", datetime.date.today().isoformat())
    (_HERE.parent / folder).mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names or SHORT:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, str(_HERE / f"{name}.py"), *SHORT[name], "--json", str(folder / f"{name}.json")]
        if subprocess.run(command, stderr=subprocess.DEVNULL, cwd=_HERE.parent).returncode != 0:
            failed.append(name)
    print(f"\nfigures: {folder}")
    if failed:
        print(f"failed: {', '.join(failed)}; run them alone to see why")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
