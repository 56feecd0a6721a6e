"""Promise: every edit of a forward pass that works locally works remotely, with the same effect."""

from typing import Any

import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is in the city of"


@parity(tiny.GPT2, tiny.LLAMA)
def test_zeroed_in_place(model: Any, remote: Any) -> dict[str, Any]:
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    with model.trace(PROMPT, remote=remote):
        layers[1].mlp.output[:] = 0
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_replaced(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[1].output = model.transformer.h[1].output * 0.5
        hidden = model.transformer.h[1].output.save()
        logits = model.lm_head.output.save()
    return {"hidden": hidden, "logits": logits}


@parity(tiny.GPT2)
def test_before_and_after_an_edit(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        before = model.transformer.h[0].output.clone().save()
        model.transformer.h[0].output[:, 3] += 1
        after = model.transformer.h[0].output.save()
    assert not torch.equal(before, after)
    return {"before": before, "after": after}


@parity(tiny.GPT2)
def test_one_element_of_a_tuple(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        attended, weights = model.transformer.h[2].attn.output
        model.transformer.h[2].attn.output = (attended.flip(1), weights)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_the_input_of_a_module(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[2].input = model.transformer.h[2].input + 0.25
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_all_inputs_of_a_module(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        args, kwargs = model.transformer.h[1].mlp.inputs
        model.transformer.h[1].mlp.inputs = ((args[0].neg(), *args[1:]), kwargs)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_one_attention_head_ablated(model: Any, remote: Any) -> dict[str, Any]:
    head = 2
    with model.trace(PROMPT, remote=remote):
        heads = model.transformer.h[1].attn.c_proj.input.unflatten(-1, (4, 16)).clone()
        heads[:, :, head] = 0
        model.transformer.h[1].attn.c_proj.input = heads.flatten(-2)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2, tiny.LLAMA)
def test_a_steering_vector_of_the_caller(model: Any, remote: Any) -> dict[str, Any]:
    vector = torch.linspace(-1, 1, 64)
    strength = 3.0
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    with model.trace(PROMPT, remote=remote):
        layers[0].output[:, -1] += strength * vector
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_a_direction_projected_out(model: Any, remote: Any) -> dict[str, Any]:
    direction = torch.nn.functional.normalize(torch.arange(64, dtype=torch.float32), dim=0)
    with model.trace(PROMPT, remote=remote):
        for layer in model.transformer.h:
            hidden = layer.output
            layer.output = hidden - (hidden @ direction)[..., None] * direction
        left = (model.transformer.h[-1].output @ direction).abs().max().save()
        logits = model.lm_head.output.save()
    assert left < 1e-3
    return {"logits": logits}


@parity(tiny.GPT2)
def test_a_layer_skipped(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[1].skip(model.transformer.h[1].input)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.LLAMA)
def test_a_layer_skipped_with_a_constant(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.model.layers[0].output
        model.model.layers[1].skip(torch.ones_like(hidden))
        skipped = model.model.layers[1].output.save()
        logits = model.lm_head.output.save()
    assert (skipped == 1).all()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_every_layer_skipped(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        embedded = model.transformer.h[0].input
        for layer in model.transformer.h:
            layer.skip(embedded)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_an_early_stop(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        hidden = model.transformer.h[0].output.save()
        tracer.stop()
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_an_early_stop_on_a_condition(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        norms = [].save()
        for layer in model.transformer.h:
            norms.append(layer.output.norm())
            if len(norms) == 2:
                tracer.stop()
    assert len(norms) == 2
    return {"norms": norms}


@parity(tiny.GPT2)
def test_an_activation_of_an_earlier_trace_patched_in(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(OTHER, remote=remote):
        clean = model.transformer.h[1].output[:, -1].save()
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[1].output[:, -1] = clean
        logits = model.lm_head.output.save()
    return {"clean": clean, "logits": logits}


@parity(tiny.GPT2)
def test_a_logit_lens(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        lens = [].save()
        for layer in model.transformer.h:
            lens.append(model.lm_head(model.transformer.ln_f(layer.output))[0, -1].argmax())
        logits = model.lm_head.output.save()
    assert lens[-1] == logits[0, -1].argmax()
    return {"lens": lens, "logits": logits}


@parity(tiny.LLAMA)
def test_a_logit_lens_on_a_llama(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        lens = torch.stack([model.lm_head(model.model.norm(layer.output))[0, -1] for layer in model.model.layers])
        lens.save()
    return {"lens": lens}


@parity(tiny.GPT2)
def test_a_module_called_on_something_else(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output
        twice = model.transformer.h[2].mlp(model.transformer.h[2].ln_2(hidden)).save()
        real = model.transformer.h[2].mlp.output.save()
    return {"twice": twice, "real": real}


@parity(tiny.GPT2)
def test_embeddings_replaced(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        embeddings = model.transformer.wte.output.clone()
        embeddings[:, 0] = embeddings[:, -1]
        model.transformer.wte.output = embeddings
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_seeded_noise(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        torch.manual_seed(1234)
        hidden = model.transformer.h[0].output
        model.transformer.h[0].output = hidden + torch.randn_like(hidden)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_an_edit_that_depends_on_a_value(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        which = []
        for index, layer in enumerate(model.transformer.h):
            if layer.output[0, -1].mean() > 0:
                layer.output[0, -1] = 0
                which.append(index)
        which.save()
        logits = model.lm_head.output.save()
    return {"which": which, "logits": logits}


@parity(tiny.GPT2)
def test_the_output_of_the_model(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote) as tracer:
        model.lm_head.output = model.lm_head.output.softmax(-1)
        result = tracer.result.logits.save()
    torch.testing.assert_close(result.sum(-1), torch.ones_like(result.sum(-1)))
    return {"result": result}


@parity(tiny.BERT)
def test_an_encoder_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace("The capital of France is [MASK].", remote=remote):
        model.bert.encoder.layer[0].output[:, 1:3] *= 2
        logits = model.output.logits.save()
    return {"logits": logits}


@parity(tiny.NEOX)
def test_a_neox_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        model.gpt_neox.layers[0].mlp.output = torch.zeros_like(model.gpt_neox.layers[0].mlp.output)
        logits = model.lm_head.output.save()
    return {"logits": logits}
