"""Promise: functions, classes, modules and data that the block uses travel with it, wherever they were written."""

import functools
import math
import operator
from collections import Counter, namedtuple
from dataclasses import dataclass
from typing import Any

import nnsight
import numpy as np
import probes
import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"
FACTOR = 0.5
TABLE = {"layer": 2, "names": ["a", "b"]}


def halved(value: torch.Tensor) -> torch.Tensor:
    return value * FACTOR


@parity(tiny.GPT2)
def test_a_function_of_the_same_file(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = halved(model.transformer.h[0].output).save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_globals_of_the_same_file(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = (model.transformer.h[TABLE["layer"]].output * FACTOR).save()
        names = nnsight.save(TABLE["names"])
    return {"hidden": hidden, "names": names}


@parity(tiny.GPT2)
def test_a_function_of_a_local_file(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = probes.scaled(model.transformer.h[0].output).save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_a_torch_module_of_a_local_file(model: Any, remote: Any) -> dict[str, Any]:
    probe = probes.Probe(64, 5, seed=3)
    with model.trace(PROMPT, remote=remote):
        classes = probe(model.transformer.h[1].output).save()
    assert classes.shape[-1] == 5
    return {"classes": classes}


@parity(tiny.GPT2)
def test_an_instance_of_a_local_class_comes_home(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        readings = [probes.reading(i, layer.output) for i, layer in enumerate(model.transformer.h)].save()
    assert isinstance(readings[0], probes.Reading)
    return {"readings": readings}


@parity(tiny.GPT2)
def test_a_closure(model: Any, remote: Any) -> dict[str, Any]:
    offset = 4.0

    def shifted(value: torch.Tensor) -> torch.Tensor:
        return halved(value) + offset

    with model.trace(PROMPT, remote=remote):
        hidden = shifted(model.transformer.h[0].output).save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_a_recursive_function(model: Any, remote: Any) -> dict[str, Any]:
    def power(value: torch.Tensor, n: int) -> torch.Tensor:
        return value if n == 1 else value * power(value, n - 1)

    with model.trace(PROMPT, remote=remote):
        cubed = power(model.transformer.h[0].output, 3).save()
    return {"cubed": cubed}


@parity(tiny.GPT2)
def test_lambdas(model: Any, remote: Any) -> dict[str, Any]:
    double, shift = lambda value: value * 2, lambda value: value + 1
    with model.trace(PROMPT, remote=remote):
        hidden = shift(double(model.transformer.h[0].output)).save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_a_partial_and_an_operator(model: Any, remote: Any) -> dict[str, Any]:
    triple = functools.partial(operator.mul, 3)
    with model.trace(PROMPT, remote=remote):
        hidden = triple(model.transformer.h[0].output).save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_a_class_with_state(model: Any, remote: Any) -> dict[str, Any]:
    class Meter:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def __call__(self, value: torch.Tensor) -> torch.Tensor:
            self.seen.append(value.norm().item())
            return value

    meter = Meter()
    with model.trace(PROMPT, remote=remote):
        for layer in model.transformer.h:
            meter(layer.output)
        seen = nnsight.save(meter.seen)
    assert len(seen) == 4
    return {"seen": seen}


@parity(tiny.GPT2)
def test_a_dataclass_of_the_function(model: Any, remote: Any) -> dict[str, Any]:
    @dataclass
    class Settings:
        layer: int
        strength: float = 2.0

    settings = Settings(layer=1)
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[settings.layer].output *= settings.strength
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_a_sparse_autoencoder_put_into_the_stream(model: Any, remote: Any) -> dict[str, Any]:
    class SparseAutoencoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(5)
            self.encoder = torch.nn.Parameter(torch.randn(64, 128, generator=generator) / 8)
            self.decoder = torch.nn.Parameter(torch.randn(128, 64, generator=generator) / 8)
            self.register_buffer("threshold", torch.tensor(0.5))

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = torch.relu(hidden @ self.encoder - self.threshold)
            return features @ self.decoder, features

    autoencoder = SparseAutoencoder()
    with model.trace(PROMPT, remote=remote):
        rebuilt, features = autoencoder(model.transformer.h[1].output)
        model.transformer.h[1].output = rebuilt
        active = (features > 0).sum(-1).save()
        logits = model.lm_head.output.save()
    return {"active": active, "logits": logits}


@parity(tiny.GPT2)
def test_functions_written_in_the_block(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):

        def centred(value: Any) -> Any:
            return value - value.mean(-1, keepdim=True)

        class Bag:
            items = (1, 2, 3)

        hidden = centred(model.transformer.h[0].output).save()
        total = nnsight.save(sum(Bag.items))
    return {"hidden": hidden, "total": total}


@parity(tiny.GPT2)
def test_imports_in_the_block(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        import itertools
        from math import sqrt

        pairs = nnsight.save(list(itertools.combinations(range(4), 2)))
        hidden = (model.transformer.h[0].output / sqrt(64)).save()
    return {"pairs": pairs, "hidden": hidden}


@parity(tiny.GPT2)
def test_numpy_in_and_out(model: Any, remote: Any) -> dict[str, Any]:
    weights = np.linspace(0, 1, 64, dtype=np.float32)
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output.detach().numpy()
        score = (hidden @ weights).save()
        order = np.argsort(score[0]).save()
        single = nnsight.save(np.float64(score.max()))
    return {"score": score, "order": order, "single": single}


@parity(tiny.GPT2)
def test_the_standard_library(model: Any, remote: Any) -> dict[str, Any]:
    Point = namedtuple("Point", "x y")
    with model.trace(PROMPT, remote=remote):
        best = model.lm_head.output[0].argmax(-1).tolist()
        counted = nnsight.save(Counter(best))
        point = Point(math.floor(3.7), len(best))
        xy = nnsight.save((point.x, point.y))
    return {"counted": counted, "xy": xy}


@parity(tiny.GPT2)
def test_tensors_and_modules_in_containers(model: Any, remote: Any) -> dict[str, Any]:
    vectors = {"up": [torch.ones(64), torch.full((64,), 2.0)], "norm": torch.nn.LayerNorm(64)}
    with model.trace(PROMPT, remote=remote):
        hidden = vectors["norm"](model.transformer.h[0].output + sum(vectors["up"])).save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_generators_and_comprehensions(model: Any, remote: Any) -> dict[str, Any]:
    wanted = {0, 2}
    with model.trace(PROMPT, remote=remote):
        means = {i: layer.output.mean() for i, layer in enumerate(model.transformer.h) if i in wanted}.save()
        largest = max(float(mean.detach()) for mean in means.values()).save()
    return {"means": means, "largest": largest}
