"""How an experiment runs from a shell: on which models and seeds, what is told of it, and where it is written."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from claims import Claim, judged, written

#: Of a kind of model, a seed, how many items, and a folder.
Planted = Callable[[str, int, int, Path], Mapping[str, float]]
#: On SmolLM2: of how many items, a folder, and the file of a picture.
Real = Callable[[int, Path, Path | None], Mapping[str, float]]
#: On a model of tests/assets: of its name, a seed, a folder, and the file or the folder of pictures.
Small = Callable[[str, int, Path, Path | None], Mapping[str, Any]]


def planted_and_real(description: str, claims: Sequence[Claim], planted: Planted, real: Real) -> dict[str, Any]:
    """Models trained on planted names for each of `--seeds`, and SmolLM2 with `--real N`; claims are judged at the
    end. Gives every model's figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Any] = {}

    def timed(name: str, run: Callable[[], Mapping[str, float]]) -> None:
        begun = time.process_time()
        found = run()
        every[name] = {**found, "cpu_seconds": round(time.process_time() - begun, 1)}
        print(name, every[name], flush=True)

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for seed in chosen.seeds:
            for kind in ("gpt", "mamba"):
                timed(f"planted-{kind}-{seed}", lambda: planted(kind, seed, chosen.items, Path(folder)))  # noqa: B023 - called at once
        if chosen.real:
            timed("SmolLM2", lambda: real(chosen.real, Path(folder), chosen.picture))
    mine = [one for one in claims if any(name.startswith(one.of) for name in every)]
    written(chosen.json, every, judged(mine, every))
    return every


def small_models(
    description: str,
    claims: Sequence[Claim],
    one_model: Small,
    told: Callable[[Mapping[str, Any]], Any],
    models: Sequence[str] = ("gpt", "mamba"),
) -> None:
    """The facts models of tests/assets, for each of `--seeds`; what there is by then is written after each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--models", nargs="+", default=list(models))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Any] = {}
    for number, seed in enumerate(chosen.seeds):
        for name in chosen.models:
            pictures = chosen.pictures if not number and name == chosen.models[0] else None
            with tempfile.TemporaryDirectory() as folder:
                every[f"{name} {seed}"] = one_model(name, seed, Path(folder), pictures)
            print(name, seed, told(every[f"{name} {seed}"]), flush=True)
            mine = [one for one in claims if any(key.startswith(one.of) for key in every)]
            written(chosen.json, every, judged(mine, every))
            sys.stdout.flush()
