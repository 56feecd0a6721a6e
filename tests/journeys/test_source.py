"""Promise: the operations inside a module's forward can be read, edited and skipped remotely."""

from typing import Any

import nnsight
import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"


@parity(tiny.GPT2)
def test_an_operation_of_an_mlp(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        gate = model.transformer.h[0].mlp.source.self_act_0.output.save()
        before = model.transformer.h[1].mlp.source.self_act_0.input.save()
    return {"gate": gate, "before": before}


@parity(tiny.GPT2, tiny.LLAMA)
def test_the_call_of_attention(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        layer = model.transformer.h[1].attn if hasattr(model, "transformer") else model.model.layers[1].self_attn
        args, kwargs = layer.source.attention_interface_1.inputs
        queries = args[1].save()
        scaling = nnsight.save(kwargs["scaling"])
        output = layer.source.attention_interface_1.output[0].save()
    return {"queries": queries, "scaling": scaling, "output": output}


@parity(tiny.GPT2)
def test_an_assignment(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        middle = model.transformer.h[0].source.hidden_states_1.output.save()
        end = model.transformer.h[0].source.hidden_states_5.output.save()
    return {"middle": middle, "end": end}


@parity(tiny.GPT2)
def test_an_operation_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        model.transformer.h[1].mlp.source.self_act_0.output *= 0.5
        model.transformer.h[2].attn.source.attn_output_reshape_0.output[:, 0] = 0
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_the_arguments_of_an_operation_edited(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        args, kwargs = model.transformer.h[0].attn.source.attention_interface_1.inputs
        attention, queries, keys, values, *rest = args
        swapped = (attention, keys, queries, values, *rest)
        model.transformer.h[0].attn.source.attention_interface_1.inputs = (swapped, kwargs)
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_an_operation_skipped(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        operation = model.transformer.h[1].mlp.source.self_act_0
        operation.skip(torch.relu(operation.input))
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_an_operation_inside_an_operation(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        attention = model.transformer.h[0].attn.source.attention_interface_1.source
        output = attention.torch_nn_functional_scaled_dot_product_attention_0.output.save()
    assert output.shape[1] == 4
    return {"output": output}


@parity(tiny.GPT2)
def test_operations_of_several_layers(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        residuals = [].save()
        for layer in model.transformer.h:
            residuals.append(layer.source.residual_2.output.norm(dim=-1))
    return {"residuals": residuals}


@parity(tiny.GPT2)
def test_operations_in_generation(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        gates = [].save()
        for _ in tracer.iter[:]:
            gates.append(model.transformer.h[0].mlp.source.self_act_0.output[:, -1])
    assert len(gates) == 3
    return {"gates": gates}


@parity(tiny.GPT2)
def test_the_names_of_the_operations(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        names = nnsight.save(list(model.transformer.h[0].mlp.source.names))
        listing = nnsight.save(str(model.transformer.h[0].mlp.source))
        model.output.save()
    assert "self_act_0" in names
    return {"names": names, "listing": listing}
