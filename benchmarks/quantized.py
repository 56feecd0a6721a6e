"""What holding a model's weights in 8 or 4 bits costs and saves on a processor, against fp32.

    python benchmarks/quantized.py [--rounds 9] [--json FILE]

SmolLM2-135M-Instruct, one thread, loaded as a server loads it (`interlace_workers.child.loading.model.load`), each way
in a process of its own. In turn, so that all meet the same machine: a forward of 8 tokens and one of 128, without
gradient, and one token more behind 127 that are cached, as each step of a generation is. Needs `pip install
'interlace[quantized]'`.

Prints medians; MiB of the weights as they are held; and how far the log-probabilities of the next token are from fp32's
over a text of 128 tokens: Kullback-Leibler divergence in nats, and the share of tokens whose likeliest successor is the
same.
"""

import argparse
import json
import os
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import service

MODEL = "smollm2-135m-instruct"
WAYS = ("float32", "bfloat16", "int8", "nf4", "fp4")
_SHORT, _LONG = 8, 128
_TEXT = (
    "The first printed books of Europe were made in Mainz in the middle of the fifteenth century. A page was set from "
    "single letters of lead, inked, and pressed on paper or vellum; then the letters were taken apart and used again. "
)


def hold(pipe: Connection, way: str, path: str) -> None:
    """A process that has the model, and answers with what it measures."""
    import torch

    from interlace_workers.child.loading.model import load
    from interlace_workers.order import Load

    hosted = load(Load(path=path, task="text-generation", dtype=way, trust_remote_code=False, threads=1))
    model, tokenizer = hosted.model._module, hosted.model.tokenizer
    ids = tokenizer(_TEXT * 3, return_tensors="pt")["input_ids"][:, :_LONG]
    assert ids.shape[1] == _LONG

    def timed(what: Any) -> float:
        begun = time.perf_counter()
        what()
        return 1000 * (time.perf_counter() - begun)

    def step() -> float:
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        return timed(lambda: model(ids[:, -1:], past_key_values=cache, use_cache=True))

    with torch.no_grad():
        while (word := pipe.recv()) != "stop":
            if word == "sizes":
                pipe.send({"weights_mib": hosted.size_bytes / 2**20})
            elif word == "values":
                pipe.send(model(ids).logits[0].float().log_softmax(-1).numpy())
            else:
                short, long = timed(lambda: model(ids[:, :_SHORT])), timed(lambda: model(ids))
                pipe.send({"short_ms": short, "long_ms": long, "step_ms": step()})


def source() -> str:
    from interlace_state.config import Config
    from interlace_state.settings.models import ModelConfig
    from interlace_workers.sources.resolving import resolve

    return str(resolve(ModelConfig(source=MODEL), Config().cache_dir, lambda _: None).path)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    import numpy

    path, pipes, processes = source(), {}, []
    for way in WAYS:
        pipes[way], theirs = get_context("spawn").Pipe()
        processes.append(get_context("spawn").Process(target=hold, args=(theirs, way, path), daemon=True))
        processes[-1].start()
        theirs.close()

    def ask(way: str, word: str) -> Any:
        pipes[way].send(word)
        return pipes[way].recv()

    found: dict[str, dict[str, float]] = {way: ask(way, "sizes") for way in WAYS}
    expected = ask(WAYS[0], "values")
    for way in WAYS:
        values = ask(way, "values")
        distance = (numpy.exp(expected) * (expected - values)).sum(-1).mean()
        same = (expected.argmax(-1) == values.argmax(-1)).mean()
        found[way] |= {"kl_nats": float(distance), "same_next": float(same)}
    taken = [{way: ask(way, "forward") for way in WAYS} for _ in range(rounds + 1)][1:]  # the first is not counted
    for way in WAYS:
        found[way] |= {name: statistics.median(one[way][name] for one in taken) for name in taken[0][way]}
        pipes[way].send("stop")
    for process in processes:
        process.join()
    return {way: {name: round(value, 4) for name, value in figures.items()} for way, figures in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = service.circumstances()
    figures = measure(arguments.rounds)
    print(f"{'':14}" + "".join(f"{way:>12}" for way in WAYS))
    for row in figures[WAYS[0]]:
        print(f"{row:14}" + "".join(f"{figures[way][row]:>12}" for way in WAYS))
    if arguments.json:
        arguments.json.write_text(json.dumps({"ways": figures} | before, indent=2) + "\n")


if __name__ == "__main__":
    main()
