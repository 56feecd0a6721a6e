"""Promise: state-space models are read, edited and run as transformers are, down to the state at each token."""

from typing import Any

import pytest
import running
import tiny_families
import torch
from parity import Lab, parity

PROMPT = "The Eiffel Tower is located in the city of"
OTHER = "The Colosseum is located in the city of"
STEPS = 4
EXACTLY = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "use_cache": True}
MAMBA = (tiny_families.MAMBA, tiny_families.FACTS_MAMBA)
MAMBA2 = (tiny_families.MAMBA2,)
HYBRIDS = (tiny_families.JAMBA, tiny_families.BAMBA)


@pytest.fixture
def lab(models: Lab, on_families: running.Running) -> Lab:
    """Both sides of every model here."""
    return models


# A module's forward is opened up when `.source` is first asked for: ahead of everything that is read inside of it.


def scan(mixer: Any) -> Any:
    """The operations of Mamba's recurrence; to be asked for ahead of a loop over its steps."""
    return mixer.source.mamba_selective_scan_0.source.implementation_0.source


@parity(*MAMBA)
def test_the_inner_values_of_a_mixer(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        mixer = model.backbone.layers[1].mixer
        inside = mixer.source
        projected = mixer.in_proj.output.save()
        a = inside.A_0.output.save()
        convolved = inside.causal_conv1d_fn_0.output.save()
        selected = mixer.x_proj.output.save()
        step = inside.time_step_0.output.save()
        arguments, keywords = inside.mamba_selective_scan_0.inputs
        b, c = arguments[3].save(), arguments[4].save()
        d, bias = keywords["D"].save(), keywords["delta_bias"].save()
        gated = mixer.out_proj.input.save()
        out = mixer.output.save()
    width = model.config.intermediate_size
    assert projected.shape[-1] == 2 * width
    assert a.shape == (width, model.config.state_size)
    assert convolved.shape == step.shape == (1, width, projected.shape[1])
    found = [projected, a, convolved, selected, step, b, c, d, bias, gated, out]
    return {str(number): value for number, value in enumerate(found)}


@parity(*MAMBA)
def test_the_state_at_every_token(model: Any, remote: Any) -> dict[str, Any]:
    tokens = len(model.tokenizer(PROMPT)["input_ids"])
    with model.trace(PROMPT, remote=remote) as tracer:
        steps = scan(model.backbone.layers[1].mixer)
        decay = steps.discrete_A_0.output.save()
        states = [].save()
        for _ in tracer.iter[:tokens]:
            states.append(steps.ssm_state_3.output)
        logits = model.lm_head.output.save()
    assert len(states) == tokens
    assert states[0].shape == (1, model.config.intermediate_size, model.config.state_size)
    return {"decay": decay, "states": states, "logits": logits}


@parity(*MAMBA)
def test_the_state_at_one_token_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        before = model.lm_head.output.save()
    with model.trace(PROMPT, remote=remote) as tracer:
        steps = scan(model.backbone.layers[1].mixer)
        for _ in tracer.iter[5]:
            steps.ssm_state_3.output = torch.zeros_like(steps.ssm_state_3.output)
        after = model.lm_head.output.save()
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])
    return {"after": after}


@parity(*MAMBA)
def test_every_part_of_a_mixer_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        mixer = model.backbone.layers[1].mixer
        inside = mixer.source
        mixer.in_proj.output[:, 2] *= 0.5
        inside.A_0.output *= 2
        inside.causal_conv1d_fn_0.output[:, :4] = 0
        mixer.x_proj.output[..., -1] += 0.1
        inside.time_step_0.output -= 0.05
        arguments, keywords = inside.mamba_selective_scan_0.inputs
        inside.mamba_selective_scan_0.inputs = (arguments, {**keywords, "D": torch.zeros_like(keywords["D"])})
        mixer.out_proj.input = mixer.out_proj.input * 1.5
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(*MAMBA, *MAMBA2, *HYBRIDS)
def test_generation_with_a_cache(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        logits = [].save()
        for _ in tracer.iter[:STEPS]:
            logits.append(model.lm_head.output[:, -1])
        ids = tracer.result.save()
    assert ids.shape[1] == len(model.tokenizer(PROMPT)["input_ids"]) + STEPS
    return {"logits": logits, "ids": ids}


@parity(*MAMBA, *MAMBA2, *HYBRIDS)
def test_prompts_of_different_lengths(model: Any, remote: Any) -> dict[str, Any]:
    shorter = "The Colosseum is in"
    with model.trace([PROMPT, shorter], remote=remote):
        both = model.output.logits[:, -1].save()
    with model.trace(shorter, remote=remote):
        alone = model.output.logits[:, -1].save()
    torch.testing.assert_close(both[1:], alone)
    return {"both": both}


@parity(*MAMBA)
def test_the_cached_state_read_and_edited_in_generation(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **EXACTLY) as tracer:
        states = [].save()
        update = model.backbone.layers[1].mixer.source.mamba_selective_state_update_0
        for step in tracer.iter[: STEPS - 1]:  # the prompt goes through the scan, each later token through this
            if step == 1:
                update.inputs[0][0].zero_()
            states.append(update.inputs[0][0].clone())
        ids = tracer.result.save()
    assert states[1].abs().sum() == 0
    assert states[2].abs().sum() > 0
    return {"states": states, "ids": ids}


@parity(*MAMBA)
def test_gradients_of_a_mixer(model: Any, remote: Any) -> dict[str, Any]:
    tokens = len(model.tokenizer(PROMPT)["input_ids"])
    with model.trace(PROMPT, remote=remote) as tracer:
        steps = scan(model.backbone.layers[1].mixer)
        states = []
        for _ in tracer.iter[:tokens]:
            states.append(steps.ssm_state_3.output)
        gated = model.backbone.layers[1].mixer.out_proj.input
        loss = model.lm_head.output[0, -1].logsumexp(0)
        with loss.backward():
            of_gated = gated.grad.save()
            of_states = [].save()
            for state in reversed(states):
                of_states.append(state.grad)
    assert all(gradient.abs().sum() > 0 for gradient in of_states)
    return {"of_gated": of_gated, "of_states": of_states}


@parity(*MAMBA, *MAMBA2)
def test_a_state_patched_from_another_prompt(model: Any, remote: Any) -> dict[str, Any]:
    with model.session(remote=remote):
        with model.trace(OTHER):
            hidden = model.backbone.layers[0].mixer.output[:, -2]
        with model.trace(PROMPT):
            model.backbone.layers[0].mixer.output[:, -2] = hidden
            logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(*MAMBA2)
def test_the_inner_values_of_a_mixer_of_mamba2(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote, use_cache=True):
        mixer = model.backbone.layers[1].mixer
        inside = mixer.source
        projected = mixer.in_proj.output.save()
        convolved = inside.causal_conv1d_fn_0.output.save()
        _, keywords = inside.mamba2_chunk_scan_0.inputs
        scanned, state = inside.mamba2_chunk_scan_0.output
        scanned, state = scanned.save(), state.save()
        normed = mixer.norm.output.save()
        d = keywords["D"].save()
    assert state.shape == (1, model.config.num_heads, model.config.head_dim, model.config.state_size)
    return {"in": projected, "conv": convolved, "out": scanned, "state": state, "norm": normed, "d": d}


@parity(*MAMBA2)
def test_a_mixer_of_mamba2_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        mixer = model.backbone.layers[1].mixer
        inside = mixer.source
        inside.causal_conv1d_fn_0.output *= 0.5
        arguments, keywords = inside.mamba2_chunk_scan_0.inputs
        first, step, a, *rest = arguments
        inside.mamba2_chunk_scan_0.inputs = ((first, step * 0.9, a * 2, *rest), keywords)
        hidden = mixer.output
        loss = model.lm_head.output[0, -1, 42]
        with loss.backward():
            gradient = hidden.grad.save()
        loss.save()
    assert gradient.abs().sum() > 0
    return {"gradient": gradient, "loss": loss.detach()}


@parity(*HYBRIDS)
def test_both_kinds_of_layers_of_a_hybrid(model: Any, remote: Any) -> dict[str, Any]:
    attends = 2 if "jamba" in model.repo_id else 1
    with model.trace(PROMPT, remote=remote):
        mixer = model.model.layers[0].mamba
        inside = mixer.source
        projected = mixer.in_proj.output.save()
        convolved = inside.causal_conv1d_fn_0.output.save()
        mixer.output[:, 3] *= 0.5
        attention = model.model.layers[attends].self_attn
        attended = attention.source.attention_interface_1.output[0].save()
        attention.output[0][:, -1] *= 2
        loss = model.lm_head.output[0, -1].logsumexp(0)
        with loss.backward():
            gradient = attended.grad.save()
    assert gradient.abs().sum() > 0
    return {"projected": projected, "convolved": convolved, "attended": attended, "gradient": gradient}


def test_a_fact_of_the_trained_model_moves_with_its_state(lab: Lab) -> None:
    model = lab.client(tiny_families.FACTS_MAMBA)
    tokens = len(model.tokenizer(PROMPT)["input_ids"])
    with model.trace(PROMPT, remote=True):
        paris = model.lm_head.output[0, -1].argmax().save()
    with model.session(remote=True):
        with model.trace(OTHER):
            hidden = [layer.output for layer in model.backbone.layers]
        with model.trace(PROMPT):
            model.backbone.layers[-1].output = hidden[-1][:, -1:].expand(-1, tokens, -1)
            rome = model.lm_head.output[0, -1].argmax().save()
    assert [model.tokenizer.decode(int(token)).strip() for token in (paris, rome)] == ["Paris", "Rome"]
