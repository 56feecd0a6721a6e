"""Promise: encoders and encoder-decoders are hosted for their own tasks, and both halves are read and edited."""

import re
from typing import Any

import pytest
import running
import tiny_families
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from parity import Lab, parity

MASKED = "interl<mask>ce"
WORD = "traces"
TEXT = "The Eiffel Tower is in the city of Paris."
OTHER = "The Colosseum is in Rome."
STEPS = 4
EXACTLY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "num_beams": 1}


@pytest.fixture
def lab(models: Lab, on_families: running.Running) -> Lab:
    """Both sides of every model here."""
    return models


def tokens(model: Any, text: str) -> torch.Tensor:
    return model.tokenizer(text, return_tensors="pt")["input_ids"]


@parity(tiny_families.BART)
def test_both_halves_of_a_bart(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(MASKED, remote=remote):
        encoded = model.model.encoder.output.last_hidden_state.save()
        layer = model.model.decoder.layers[0]
        itself = layer.self_attn.output[0].save()
        across = layer.encoder_attn.output[0].save()
        logits = model.output.logits.save()
    assert encoded.shape == itself.shape == across.shape
    return {"encoded": encoded, "itself": itself, "across": across, "logits": logits}


@parity(tiny_families.BART)
def test_what_the_decoder_has_of_the_encoder_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(MASKED, remote=remote):
        before = model.output.logits.save()
    with model.trace(MASKED, remote=remote):
        model.model.encoder.layers[1].output[:, 2] = 0
        model.model.decoder.layers[1].encoder_attn.output[0][:] *= 0.5
        after = model.output.logits.save()
    assert not torch.equal(before, after)
    return {"after": after}


@parity(tiny_families.BART)
def test_generation_of_an_encoder_decoder(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(tokens(model, WORD), remote=remote, **EXACTLY) as tracer:
        encoded = model.model.encoder.output.last_hidden_state.save()
        across = [].save()
        for _ in tracer.iter[:STEPS]:
            across.append(model.model.decoder.layers[1].encoder_attn.output[0])
        ids = tracer.result.save()
    assert [tuple(value.shape[:2]) for value in across] == [(1, 1)] * STEPS
    assert model.tokenizer.decode(ids[0], skip_special_tokens=True) == WORD[:1:-1]
    return {"encoded": encoded, "across": across, "ids": ids}


@parity(tiny_families.BART)
def test_a_decoder_steered_at_every_step(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(tokens(model, WORD), remote=remote, **EXACTLY) as tracer:
        for _ in tracer.iter[:STEPS]:
            model.model.decoder.layers[1].output[:, -1] += torch.linspace(-3, 3, 48)
        ids = tracer.result.save()
    return {"ids": ids}


@parity(tiny_families.BART)
def test_the_gradient_of_a_decoder_to_its_encoder(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(MASKED, remote=remote):
        encoded = model.model.encoder.layers[0].output
        loss = model.output.logits[0, 3].logsumexp(0)
        with loss.backward():
            gradient = encoded.grad.save()
    assert gradient.abs().sum() > 0
    return {"gradient": gradient}


@parity(tiny_families.T5)
def test_both_halves_of_a_t5(model: Any, remote: Any) -> dict[str, Any]:
    answer = tokens(model, OTHER)
    with model.trace(TEXT, decoder_input_ids=answer, remote=remote):
        bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.output.save()
        encoded = model.encoder.output.last_hidden_state.save()
        model.decoder.block[1].layer[1].EncDecAttention.output[0][:, 0] = 0
        logits = model.lm_head.output.save()
    assert logits.shape[1] == answer.shape[1] != encoded.shape[1]
    return {"bias": bias, "encoded": encoded, "logits": logits}


@parity(tiny_families.T5)
def test_generation_of_a_t5(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(TEXT, remote=remote, **EXACTLY) as tracer:
        model.encoder.block[1].output[0][:, 3] *= 2
        ids = tracer.result.save()
    with model.pipe(TEXT, remote=remote, **EXACTLY) as tracer:
        said = tracer.result.save()
    assert set(said[0]) == {"generated_text"}
    return {"ids": ids, "said": said}


@parity(tiny_families.T5)
def test_texts_of_an_encoder_decoder_in_invokes(model: Any, remote: Any) -> dict[str, Any]:
    answer = tokens(model, OTHER)
    with model.trace(remote=remote) as tracer:
        with tracer.invoke(tokens(model, TEXT), decoder_input_ids=answer):
            one = model.lm_head.output.save()
        with tracer.invoke(tokens(model, OTHER), decoder_input_ids=answer[:, :3]):
            two = model.encoder.output.last_hidden_state.save()
    assert one.shape[0] == two.shape[0] == 1
    return {"one": one, "two": two}


def test_another_task_than_the_hosted_one_is_told_which(lab: Lab) -> None:
    hidden = TransformersModel(tiny_families.T5, task="feature-extraction")
    hosted = re.escape(f"{tiny_families.T5} (text-to-text)")
    with pytest.raises(RemoteError, match=f"does not host .*feature-extraction.*{hosted}"):
        with hidden.trace(tokens(hidden, TEXT), decoder_input_ids=tokens(hidden, OTHER), remote=True):
            hidden.output.save()
