"""Promise: several prompts of one trace meet remotely as they do locally: batched, padded, each with its own rows."""

from typing import Any

import nnsight
import tiny
import torch
from parity import parity

SHORT = "Two plus two is"
LONG = "The Eiffel Tower is located in the city of"
OTHER = "The Colosseum is located in the city of"


@parity(tiny.GPT2, tiny.LLAMA)
def test_two_invokes_of_different_length(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(SHORT):
            short = model.lm_head.output[:, -1].save()
        with tracer.invoke(LONG):
            long = model.lm_head.output[:, -1].save()
    return {"short": short, "long": long}


@parity(tiny.GPT2)
def test_a_list_of_prompts(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace([SHORT, LONG, OTHER], remote=remote):
        hidden = model.transformer.h[1].output.save()
        logits = model.lm_head.output[:, -1].save()
    assert hidden.shape[0] == 3
    return {"hidden": hidden, "logits": logits}


@parity(tiny.GPT2)
def test_padding_and_its_mask(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace([SHORT, LONG], remote=remote):
        kwargs = model.transformer.inputs[1]
        mask = kwargs["attention_mask"].save()
        positions = kwargs["position_ids"].save()
    assert mask[0, 0] == 0
    return {"mask": mask, "positions": positions}


@parity(tiny.BERT)
def test_an_encoder_pads_on_the_right(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke("Rome is [MASK]."):
            short = model.output.logits.save()
        with tracer.invoke("The capital of France is [MASK]."):
            long = model.output.logits.save()
        with tracer.invoke():
            ids = model.bert.embeddings.word_embeddings.input.save()
    assert ids[0, -1] == model.tokenizer.pad_token_id
    return {"short": short, "long": long, "ids": ids}


@parity(tiny.GPT2)
def test_an_empty_invoke_sees_the_whole_batch(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(SHORT):
            one = model.transformer.h[0].output.save()
        with tracer.invoke([LONG, OTHER]):
            two = model.transformer.h[0].output.save()
        with tracer.invoke():
            every = model.transformer.h[0].output.save()
    assert (one.shape[0], two.shape[0], every.shape[0]) == (1, 2, 3)
    return {"one": one, "two": two, "every": every}


@parity(tiny.GPT2)
def test_an_edit_stays_in_its_rows(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(LONG):
            model.transformer.h[0].output[:] = 0
            edited = model.lm_head.output[:, -1].save()
        with tracer.invoke(LONG):
            clean = model.lm_head.output[:, -1].save()
    assert not torch.equal(edited, clean)
    return {"edited": edited, "clean": clean}


@parity(tiny.GPT2)
def test_a_patch_from_one_invoke_into_the_next(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(LONG):
            clean = model.transformer.h[1].output[:, -1]
        with tracer.invoke(OTHER):
            hidden = model.transformer.h[2].output
            hidden[:, -1] = clean
            patched = model.lm_head.output[:, -1].save()
    return {"patched": patched}


@parity(tiny.GPT2)
def test_a_patch_at_one_place_behind_a_barrier(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(LONG):
            words = model.transformer.wte.output
            barrier()
            logits = model.lm_head.output[:, -1].save()
        with tracer.invoke(OTHER):
            barrier()
            model.transformer.wte.output = words
            patched = model.lm_head.output[:, -1].save()
    return {"logits": logits, "patched": patched}


@parity(tiny.GPT2)
def test_a_barrier_met_twice(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(LONG):
            first = model.transformer.h[0].output
            barrier()
            second = model.transformer.h[2].output
            barrier()
        with tracer.invoke(OTHER):
            barrier()
            model.transformer.h[0].output = first * 0.5
            barrier()
            model.transformer.h[2].output = second
            logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_invokes_opened_in_a_loop(model: Any, remote: Any) -> dict[str, Any]:
    prompts = [SHORT, LONG, OTHER]
    with model.trace(remote=remote) as tracer:
        best = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                best.append(model.lm_head.output[0, -1].argmax())
    assert len(best) == 3
    return {"best": best}


@parity(tiny.GPT2)
def test_a_layer_skipped_in_every_invoke(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(LONG):
            model.transformer.h[1].skip(model.transformer.h[1].input)
            one = model.lm_head.output[:, -1].save()
        with tracer.invoke(OTHER):
            model.transformer.h[1].skip(model.transformer.h[1].input * 2)
            two = model.lm_head.output[:, -1].save()
    return {"one": one, "two": two}


@parity(tiny.GPT2)
def test_invokes_of_token_ids_and_text_together(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke([11, 12, 13]):
            ids = model.lm_head.output[:, -1].save()
        with tracer.invoke(LONG):
            text = model.lm_head.output[:, -1].save()
    return {"ids": ids, "text": text}


@parity(tiny.GPT2)
def test_invokes_with_ordinary_code_between(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        seen = {}.save()
        scale = sum(range(4))
        with tracer.invoke(LONG):
            seen["first"] = model.transformer.h[0].output.mean() * scale
        scale += 1
        with tracer.invoke(SHORT):
            seen["second"] = model.transformer.h[1].output.mean() * scale
        plan = nnsight.save(["before the model ran", scale])
    return {"seen": seen, "plan": plan}
