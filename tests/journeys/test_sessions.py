"""Promise: several traces of one session run as one job, and hand values to each other without a round trip."""

from typing import Any

import nnsight
import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is in the city of"


@parity(tiny.GPT2, tiny.LLAMA)
def test_two_traces(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            one = model.lm_head.output.save()
        with model.trace(OTHER):
            two = model.lm_head.output.save()
    return {"one": one, "two": two}


@parity(tiny.GPT2)
def test_a_value_passed_on(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            clean = model.transformer.h[1].output[:, -1]
        with model.trace(OTHER):
            model.transformer.h[1].output[:, -1] = clean
            patched = model.lm_head.output[:, -1].save()
    return {"patched": patched}


@parity(tiny.GPT2)
def test_a_loop_over_layers(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            clean = [layer.output[:, -1].clone() for layer in model.transformer.h]
        effects = [].save()
        for index in range(4):
            with model.trace(OTHER):
                model.transformer.h[index].output[:, -1] = clean[index]
                effect = model.lm_head.output[0, -1, 5]
            effects.append(effect)
    assert len(effects) == 4
    return {"effects": effects}


@parity(tiny.GPT2)
def test_a_condition_between_traces(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            best = model.lm_head.output[0, -1].argmax()
        if best % 2 == 0:
            with model.trace(OTHER):
                chosen = model.transformer.h[0].output.mean()
        else:
            with model.trace(OTHER):
                chosen = model.transformer.h[3].output.mean()
        chosen.save()
        nnsight.save(best)
    return {"best": best, "chosen": chosen}


@parity(tiny.GPT2)
def test_a_list_of_prompts_of_the_caller(model: Any, remote: Any) -> dict[str, Any]:
    prompts = [PROMPT, OTHER, "Two plus two is"]
    with model.session(remote=remote):
        table = {}.save()
        for prompt in prompts:
            with model.trace(prompt):
                word = model.lm_head.output[0, -1].argmax().item()
            table[prompt] = word
    assert list(table) == prompts
    return {"table": table}


@parity(tiny.GPT2)
def test_generation_after_a_trace(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            vector = model.transformer.h[2].output[:, -1:]
        with model.generate(OTHER, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
            for _ in tracer.iter[:]:
                model.transformer.h[2].output = model.transformer.h[2].output + vector
        with model.generate(OTHER, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
            plain = tracer.result.save()
    return {"plain": plain}


@parity(tiny.GPT2)
def test_invokes_in_a_session(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace() as tracer:
            with tracer.invoke(PROMPT):
                one = model.transformer.h[0].output[:, -1]
            with tracer.invoke(OTHER):
                two = model.transformer.h[0].output[:, -1]
        distance = (one - two).norm().save()
    return {"distance": distance}


@parity(tiny.GPT2)
def test_gradients_in_a_session(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(PROMPT):
            hidden = model.transformer.h[0].output
            loss = model.lm_head.output[0, -1, 3]
            with loss.backward():
                gradient = hidden.grad
        direction = torch.nn.functional.normalize(gradient[0, -1], dim=0)
        with model.trace(PROMPT):
            model.transformer.h[0].output[0, -1] += 5 * direction
            after = model.lm_head.output[0, -1, 3].save()
        before = loss.detach().save()
    assert after > before
    return {"before": before, "after": after.detach()}


@parity(tiny.GPT2)
def test_only_what_is_saved_comes_back(model: Any, remote: Any) -> dict[str, Any]:
    unsaved = "as it was"
    with model.session(remote=remote):
        with model.trace(PROMPT):
            unsaved = model.transformer.h[0].output
            saved = unsaved.sum()
        saved = (saved * 2).save()
    assert unsaved == "as it was"
    return {"saved": saved}


@parity(tiny.GPT2)
def test_ordinary_python_around_traces(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        total, tries = torch.tensor(0.0), 0
        while tries < 5:
            with model.trace(PROMPT):
                total = total + model.transformer.h[tries % 4].output.abs().mean()
            tries += 1
            try:
                assert tries < 3
            except AssertionError:
                break
        total = total.save()
        tries = nnsight.save(tries)
    assert tries == 3
    return {"total": total.detach(), "tries": tries}
