"""Promise: images are traced as text is: pictures go to the server, what is inside of the model comes back."""

from typing import Any

import pytest
import running
import tiny_families
import torch
from parity import Lab, parity
from tiny_families import picture

QUESTION = "<image> What is in the city of Paris?"
STEPS = 3
EXACTLY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}


@pytest.fixture
def lab(models: Lab, on_families: running.Running) -> Lab:
    """Both sides of every model here."""
    return models


@parity(tiny_families.VIT)
def test_the_layers_of_a_vision_transformer(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(picture(), remote=remote):
        pixels = model.inputs[1]["pixel_values"].save()
        patches = model.vit.embeddings.patch_embeddings.output.save()
        hidden = [].save()
        for layer in model.vit.layers:
            hidden.append(layer.output)
        logits = model.output.logits.save()
    assert pixels.shape == (1, 3, 24, 24)
    assert patches.shape[:2] == (1, 36)
    return {"pixels": pixels, "patches": patches, "hidden": hidden, "logits": logits}


@parity(tiny_families.VIT)
def test_a_patch_of_a_picture_removed(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(picture(), remote=remote):
        before = model.output.logits.save()
    with model.trace(picture(), remote=remote):
        model.vit.embeddings.patch_embeddings.output[:, 1] = 0
        after = model.output.logits.save()
    assert not torch.equal(before, after)
    return {"after": after}


@parity(tiny_families.VIT)
def test_pictures_in_a_batch_and_in_invokes(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace([picture(1), picture(2)], remote=remote):
        batch = model.output.logits.save()
    with model.trace(remote=remote) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(picture(1)):
            hidden = model.vit.layers[0].output.clone()
            barrier()
            one = model.output.logits.save()
        with tracer.invoke(picture(2)):
            barrier()
            model.vit.layers[0].output = hidden
            two = model.output.logits.save()
    assert batch.shape[0] == 2
    torch.testing.assert_close(one, batch[:1])
    torch.testing.assert_close(two, one)
    return {"batch": batch, "one": one, "two": two}


@parity(tiny_families.VIT)
def test_attention_inside_a_vision_transformer(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(picture(), remote=remote):
        attention = model.vit.layers[1].attention
        arguments, _ = attention.source.attention_interface_1.inputs
        queries = arguments[1].save()
        loss = model.output.logits[0, 2]
        with loss.backward():
            gradient = queries.grad.save()
    assert queries.shape[-2] == 37
    return {"queries": queries, "gradient": gradient}


@parity(tiny_families.VIT)
def test_the_pipeline_of_a_vision_model(model: Any, remote: Any) -> dict[str, Any]:
    with model.pipe(picture(), remote=remote, top_k=2) as tracer:
        labels = tracer.result.save()
    assert {one["label"] for one in labels} < {"circle", "square", "triangle"}
    return {"labels": labels}


@parity(tiny_families.LLAVA)
def test_both_halves_of_a_vision_language_model(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(QUESTION, images=[picture()], remote=remote):
        seen = model.model.vision_tower.output.last_hidden_state.save()
        projected = model.model.multi_modal_projector.output.save()
        hidden = model.model.language_model.layers[1].output.save()
        logits = model.lm_head.output.save()
    assert seen.shape[1] == 5
    assert hidden.shape[1] == logits.shape[1] > 4
    return {"seen": seen, "projected": projected, "hidden": hidden, "logits": logits}


@parity(tiny_families.LLAVA)
def test_what_is_seen_edited_ahead_of_what_is_said(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(text=QUESTION, images=[picture()], remote=remote, **EXACTLY) as tracer:
        model.model.multi_modal_projector.output[:] *= -2
        hidden = [].save()
        for _ in tracer.iter[:STEPS]:
            hidden.append(model.model.language_model.layers[1].output[:, -1])
        ids = tracer.result.save()
    return {"hidden": hidden, "ids": ids}


@parity(tiny_families.LLAVA)
def test_gradients_from_words_to_what_is_seen(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(text=QUESTION, images=[picture()], remote=remote):
        projected = model.model.multi_modal_projector.output
        loss = model.lm_head.output[0, -1].logsumexp(0)
        with loss.backward():
            gradient = projected.grad.save()
    assert gradient.abs().sum() > 0
    return {"gradient": gradient}


@parity(tiny_families.LLAVA)
def test_a_conversation_about_a_picture(model: Any, remote: Any) -> dict[str, Any]:
    says = [{"type": "image", "image": picture()}, {"type": "text", "text": "What is it?"}]
    with model.trace([{"role": "user", "content": says}], remote=remote):
        ids = model.inputs[1]["input_ids"].save()
        logits = model.lm_head.output.save()
    return {"ids": ids, "logits": logits}


@parity(tiny_families.LLAVA)
def test_text_alone(model: Any, remote: Any) -> dict[str, Any]:
    ids = model.tokenizer("Two plus two is", return_tensors="pt")["input_ids"]
    with model.trace(ids, remote=remote):
        logits = model.lm_head.output.save()
    return {"logits": logits}
