"""Promise: backward passes run remotely, and gradients can be read and edited there."""

from typing import Any

import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is in the city of"


@parity(tiny.GPT2, tiny.LLAMA)
def test_the_gradient_of_a_hidden_state(model: Any, remote: Any) -> dict[str, Any]:
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    with model.trace(PROMPT, remote=remote):
        hidden = layers[1].output
        loss = model.lm_head.output[0, -1, 42]
        with loss.backward():
            gradient = hidden.grad.save()
        loss.save()
    assert gradient.abs().sum() > 0
    return {"gradient": gradient, "loss": loss.detach()}


@parity(tiny.GPT2)
def test_gradients_of_several_layers(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = [layer.output for layer in model.transformer.h]
        loss = model.output.logits.logsumexp(-1).sum()
        with loss.backward():
            gradients = [].save()
            for value in reversed(hidden):
                gradients.append(value.grad)
    assert len(gradients) == 4
    return {"gradients": gradients}


@parity(tiny.GPT2)
def test_a_gradient_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        early = model.transformer.h[0].output
        late = model.transformer.h[2].output
        loss = model.lm_head.output.square().mean()
        with loss.backward():
            late.grad = late.grad * 3
            gradient = early.grad.save()
    return {"gradient": gradient}


@parity(tiny.GPT2)
def test_two_backward_passes(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[1].output
        logits = model.lm_head.output[0, -1]
        with logits[1].backward(retain_graph=True):
            first = hidden.grad.save()
        with logits[2].backward():
            second = hidden.grad.save()
    assert not torch.equal(first, second)
    return {"first": first, "second": second}


@parity(tiny.GPT2)
def test_a_gradient_from_a_vector(model: Any, remote: Any) -> dict[str, Any]:
    vector = torch.linspace(0, 1, 400)
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[3].output
        logits = model.lm_head.output[0, -1]
        with logits.backward(gradient=vector):
            gradient = hidden.grad.save()
    return {"gradient": gradient}


@parity(tiny.GPT2)
def test_gradients_of_attention_and_mlp(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        attended = model.transformer.h[1].attn.output[0]
        expanded = model.transformer.h[1].mlp.output
        loss = model.lm_head.output.mean()
        with loss.backward():
            of_mlp = expanded.grad.save()
            of_attention = attended.grad.save()
    return {"of_mlp": of_mlp, "of_attention": of_attention}


@parity(tiny.GPT2)
def test_gradients_in_invokes(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(PROMPT):
            hidden = model.transformer.h[1].output
            loss = model.lm_head.output[:, -1, 7].sum()
            with loss.backward(retain_graph=True):
                one = hidden.grad.save()
        with tracer.invoke(OTHER):
            hidden = model.transformer.h[1].output
            loss = model.lm_head.output[:, -1, 9].sum()
            with loss.backward():
                two = hidden.grad.save()
    return {"one": one, "two": two}


@parity(tiny.GPT2)
def test_attribution_patching(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        clean = [layer.output.detach()[:, -1].clone() for layer in model.transformer.h].save()
    with model.trace(OTHER, remote=remote):
        corrupted = [layer.output for layer in model.transformer.h]
        loss = model.lm_head.output[0, -1, 3] - model.lm_head.output[0, -1, 4]
        effects = [].save()
        with loss.backward():
            for good, bad in zip(reversed(clean), reversed(corrupted), strict=True):
                effects.append(((good - bad[:, -1]) * bad.grad[:, -1]).sum())
    return {"effects": [effect.detach() for effect in effects]}


@parity(tiny.GPT2)
def test_gradients_of_weights_by_a_bare_backward(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        model.zero_grad()
        loss = model.lm_head.output.square().mean()
        loss.backward()
        gradient = model.transformer.h[0].mlp.c_fc.weight.grad.clone().save()
        model.zero_grad()
    return {"gradient": gradient}


@parity(tiny.GPT2)
def test_autograd_asked_directly(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[2].output
        logits = model.lm_head.output
        (gradient,) = torch.autograd.grad(logits[0, -1].logsumexp(0), hidden)
        gradient.save()
    return {"gradient": gradient}


@parity(tiny.GPT2)
def test_gradients_of_embeddings_put_in(model: Any, remote: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(11)
    start = torch.randn(1, 4, 64, generator=generator)
    with model.trace(inputs_embeds=start, remote=remote):
        embeddings = model.transformer.inputs[1]["inputs_embeds"].requires_grad_()
        loss = model.lm_head.output.sum()
        with loss.backward():
            gradient = embeddings.grad.save()
    return {"gradient": gradient}


@parity(tiny.GPT2)
def test_no_gradients_where_none_are_wanted(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        with torch.no_grad():
            lens = model.lm_head(model.transformer.h[0].output).save()
    assert not lens.requires_grad
    return {"lens": lens}


@parity(tiny.GPT2)
def test_a_steering_vector_trained_in_a_session(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        vector = torch.zeros(64, requires_grad=True)
        optimizer = torch.optim.SGD([vector], lr=0.5)
        losses = [].save()
        for _ in range(3):
            with model.trace(PROMPT):
                model.transformer.h[1].output = model.transformer.h[1].output + vector
                loss = torch.nn.functional.cross_entropy(model.lm_head.output[:, -1], torch.tensor([42]))
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        model.zero_grad()
        learned = vector.detach().save()
    assert losses[2] < losses[0]
    return {"losses": losses, "learned": learned}
