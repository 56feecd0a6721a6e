"""Promise: generation can be read and steered step by step, and gives the same tokens."""

from typing import Any

import nnsight
import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "Two plus two is"
STEPS = 5
EXACTLY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}


@parity(tiny.GPT2, tiny.LLAMA, tiny.NEOX)
def test_greedy_tokens(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        ids = tracer.result.save()
    return {"ids": ids, "text": model.tokenizer.decode(ids[0])}


@parity(tiny.GPT2)
def test_a_batch_of_prompts(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate([PROMPT, OTHER], remote=remote, **EXACTLY) as tracer:
        ids = tracer.result.save()
    return {"ids": ids}


@parity(tiny.GPT2, tiny.LLAMA)
def test_logits_of_every_step(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        logits = [].save()
        for _ in tracer.iter[:]:
            logits.append(model.lm_head.output[:, -1])
    assert len(logits) == STEPS
    return {"logits": logits}


@parity(tiny.GPT2)
def test_the_first_steps(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        hidden = [].save()
        for step in tracer.iter[:3]:
            hidden.append((step, model.transformer.h[1].output))
        ids = tracer.result.save()
    assert [tuple(value.shape)[1] for _, value in hidden][1:] == [1, 1]
    return {"hidden": hidden, "ids": ids}


@parity(tiny.GPT2)
def test_one_step(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        for _ in tracer.iter[2]:
            hidden = model.transformer.h[0].output.save()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_chosen_steps(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        seen = {}.save()
        for step in tracer.iter[[0, 2, 4]]:
            seen[step] = model.lm_head.output[0, -1].argmax()
    assert list(seen) == [0, 2, 4]
    return {"seen": seen}


@parity(tiny.GPT2)
def test_a_range_of_steps(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        best = [].save()
        for _ in tracer.iter[1:4]:
            best.append(model.lm_head.output[0, -1].argmax())
    assert len(best) == 3
    return {"best": best}


@parity(tiny.GPT2)
def test_all_steps_by_name(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        norms = [].save()
        for _ in tracer.all():
            norms.append(model.transformer.h[0].output.norm())
    return {"norms": norms}


@parity(tiny.GPT2, tiny.LLAMA)
def test_an_edit_at_every_step(model: Any, remote: Any) -> dict[str, Any]:
    vector = torch.linspace(-4, 4, 64)
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        best = [].save()
        for _ in tracer.iter[:]:
            layers[1].output[:, -1] += vector
            best.append(model.lm_head.output[0, -1].argmax())
    return {"best": best}


@parity(tiny.GPT2)
def test_an_edit_at_one_step(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        for step in tracer.iter[:STEPS]:
            if step == 2:
                model.lm_head.output[:, -1] = -1e4
                model.lm_head.output[:, -1, 77] = 1e4
        ids = tracer.result.save()
    assert ids[0, -STEPS + 2] == 77
    return {"ids": ids}


@parity(tiny.GPT2)
def test_sampling_with_a_seed_in_the_block(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, max_new_tokens=8, min_new_tokens=8, do_sample=True) as tracer:
        torch.manual_seed(99)
        ids = tracer.result.save()
    return {"ids": ids}


@parity(tiny.GPT2)
def test_sampling_settings(model: Any, remote: Any) -> dict[str, Any]:
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 10, "top_p": 0.9, "repetition_penalty": 1.2}
    with model.generate(PROMPT, remote=remote, max_new_tokens=6, min_new_tokens=6, **settings) as tracer:
        torch.manual_seed(3)
        ids = tracer.result.save()
    return {"ids": ids}


@parity(tiny.GPT2)
def test_beams(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, num_beams=3, num_return_sequences=2, **EXACTLY) as tracer:
        ids = tracer.result.save()
    assert ids.shape[0] == 2
    return {"ids": ids}


@parity(tiny.GPT2)
def test_tokens_as_they_are_streamed(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        tokens = [].save()
        for _ in tracer.iter[:]:
            tokens.append(model.generator.streamer.output)
    assert len(tokens) == STEPS + 1
    return {"tokens": tokens}


@parity(tiny.GPT2)
def test_scores_beside_the_tokens(model: Any, remote: Any) -> dict[str, Any]:
    wanted = {"output_scores": True, "return_dict_in_generate": True, "use_cache": True}
    with model.generate(PROMPT, remote=remote, **EXACTLY, **wanted) as tracer:
        result = tracer.result
        sequences = result.sequences.save()
        scores = nnsight.save(list(result.scores))
    return {"sequences": sequences, "scores": scores}


@parity(tiny.GPT2)
def test_generation_in_invokes(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(remote=remote, **EXACTLY) as tracer:
        with tracer.invoke(PROMPT):
            one = tracer.result.save()
        with tracer.invoke(OTHER):
            best = [].save()
            for _ in tracer.iter[:]:
                best.append(model.lm_head.output[:, -1].argmax(-1))
        with tracer.invoke():
            both = tracer.result.save()
    assert (one.shape[0], both.shape[0]) == (1, 2)
    return {"one": one, "best": best, "both": both}


@parity(tiny.GPT2)
def test_a_stop_in_the_middle(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        best = [].save()
        for step in tracer.iter[:]:
            best.append(model.lm_head.output[0, -1].argmax())
            if step == 1:
                tracer.stop()
    assert len(best) == 2
    return {"best": best}


@parity(tiny.GPT2)
def test_the_end_of_text_ends_it(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, max_new_tokens=9, do_sample=False) as tracer:
        for step in tracer.iter[:3]:
            if step == 2:
                model.lm_head.output[:, -1, 0] = 1e4
        ids = tracer.result.save()
    assert ids[0, -1] == 0
    return {"ids": ids}


@parity(tiny.GPT2)
def test_the_whole_pipeline(model: Any, remote: Any) -> dict[str, Any]:
    with model.pipe(PROMPT, remote=remote, max_new_tokens=4, do_sample=False) as tracer:
        records = tracer.result.save()
    assert records[0]["generated_text"].startswith(PROMPT)
    return {"records": records}


@parity(tiny.BERT)
def test_a_pipeline_that_fills_a_mask(model: Any, remote: Any) -> dict[str, Any]:
    with model.pipe("The capital of France is [MASK].", remote=remote, top_k=3) as tracer:
        hidden = model.bert.encoder.layer[0].output.save()
        records = tracer.result.save()
    return {"hidden": hidden, "records": records}
