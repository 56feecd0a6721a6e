"""Promise: every value of a forward pass that can be read locally can be read remotely, and is the same."""

from typing import Any

import nnsight
import tiny
import torch
from parity import parity

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "Two plus two is"


@parity(tiny.GPT2)
def test_hidden_states_of_one_layer(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[1].output.save()
    return {"hidden": hidden}


@parity(tiny.LLAMA)
def test_hidden_states_of_a_llama(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.model.layers[1].output.save()
        normed = model.model.norm.output.save()
    return {"hidden": hidden, "normed": normed}


@parity(tiny.NEOX)
def test_hidden_states_of_a_neox(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        attended = model.gpt_neox.layers[0].attention.output[0].save()
        hidden = model.gpt_neox.layers[1].output.save()
        logits = model.lm_head.output.save()
    return {"attended": attended, "hidden": hidden, "logits": logits}


@parity(tiny.BERT)
def test_hidden_states_of_an_encoder(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace("The capital of France is [MASK].", remote=remote):
        attended = model.bert.encoder.layer[0].attention.E_output.output.save()
        hidden = model.bert.encoder.layer[1].output.save()
        logits = model.output.logits.save()
    return {"attended": attended, "hidden": hidden, "logits": logits}


@parity(tiny.GPT2, tiny.LLAMA, tiny.NEOX)
def test_logits(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        logits = model.output.logits.save()
        best = logits[0, -1].argmax(dim=-1).save()
    return {"logits": logits, "best": best}


@parity(tiny.GPT2)
def test_hidden_states_of_every_layer_in_a_list(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = nnsight.save([layer.output for layer in model.transformer.h])
    assert len(hidden) == 4
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_each_layer_saved_in_a_loop(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        norms = [].save()
        for layer in model.transformer.h:
            norms.append(layer.output.norm(dim=-1))
    return {"norms": norms}


@parity(tiny.GPT2)
def test_inputs_as_arguments_and_keywords(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        args, kwargs = model.transformer.h[2].attn.inputs
        first = args[0].save()
        names = nnsight.save(sorted(kwargs))
    return {"first": first, "names": names}


@parity(tiny.GPT2)
def test_first_input(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        before = model.transformer.h[0].mlp.input.save()
        after = model.transformer.h[0].mlp.output.save()
    return {"before": before, "after": after}


@parity(tiny.GPT2)
def test_many_modules_in_order(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        words = model.transformer.wte.output.save()
        places = model.transformer.wpe.output.save()
        keys = model.transformer.h[0].attn.c_attn.output.save()
        attended = model.transformer.h[0].attn.c_proj.output.save()
        gate = model.transformer.h[0].mlp.act.output.save()
        last = model.transformer.ln_f.output.save()
    return {"words": words, "places": places, "keys": keys, "attended": attended, "gate": gate, "last": last}


@parity(tiny.LLAMA)
def test_grouped_queries_and_keys(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        queries = model.model.layers[0].self_attn.q_proj.output.save()
        keys = model.model.layers[0].self_attn.k_proj.output.save()
        gate = model.model.layers[0].mlp.gate_proj.output.save()
    assert queries.shape[-1] == 2 * keys.shape[-1]
    return {"queries": queries, "keys": keys, "gate": gate}


@parity(tiny.GPT2, tiny.LLAMA, attn_implementation="eager")
def test_attention_weights_of_eager_attention(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        layer = model.transformer.h[0].attn if hasattr(model, "transformer") else model.model.layers[0].self_attn
        weights = layer.output[1].save()
    assert weights.shape[1] == 4
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    return {"weights": weights}


@parity(tiny.GPT2)
def test_no_attention_weights_of_sdpa(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        output = model.transformer.h[0].attn.output.save()
    assert output[1] is None
    return {"output": output}


@parity(tiny.GPT2)
def test_slices_of_tokens_and_layers(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        middle = model.transformer.h[1:3]
        first = middle[0].output[:, 2:5, ::8].save()
        last = model.transformer.h[-1].output[:, -1].save()
        picked = model.transformer.ln_f.output[0, torch.tensor([0, 3])].save()
    return {"first": first, "last": last, "picked": picked}


@parity(tiny.GPT2)
def test_values_of_plain_python(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output
        shape = nnsight.save(tuple(hidden.shape))
        mean = nnsight.save(float(hidden.mean()))
        positive = nnsight.save(bool(hidden.sum() > 0))
        words = nnsight.save(f"{hidden.shape[1]} tokens, dtype {hidden.dtype}")
        big = nnsight.save(2**100)
        mixed = nnsight.save({"none": None, "set": {1, 2}, "bytes": b"\x00\xff", "complex": 1 + 2j, 3: "three"})
    return {"shape": shape, "mean": mean, "positive": positive, "words": words, "big": big, "mixed": mixed}


@parity(tiny.GPT2)
def test_nested_containers(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        tree = {}.save()
        for index in range(2):
            tree[f"layer {index}"] = {
                "attention": [model.transformer.h[index].attn.output[0]],
                "mlp": (model.transformer.h[index].mlp.output, index),
            }
    return {"tree": tree}


@parity(tiny.GPT2)
def test_a_whole_model_output(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote, use_cache=False):
        output = model.output.save()
    return {"output": output}


@parity(tiny.GPT2)
def test_the_key_value_cache(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote, use_cache=True):
        cache = model.output.past_key_values.save()
    assert len(cache) == 4
    return {"keys": [layer.keys for layer in cache.layers], "values": [layer.values for layer in cache.layers]}


@parity(tiny.GPT2)
def test_keywords_of_the_forward(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote, output_hidden_states=True, use_cache=False):
        hidden = model.output.hidden_states.save()
    assert len(hidden) == 5
    return {"hidden": hidden}


@parity(tiny.GPT2)
def test_a_module_by_its_path(model: Any, remote: Any) -> dict[str, Any]:
    path = "transformer.h.2.mlp"
    with model.trace(PROMPT, remote=remote):
        hidden = model.get(path).output.save()
        value = model.get("transformer.h.3.mlp.output").save()
    return {"hidden": hidden, "value": value}


@parity(tiny.GPT2)
def test_modules_found_by_a_condition(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        found = {}.save()
        for path, envoy in model.named_modules(lambda envoy: envoy.path.endswith(".mlp")):
            found[path] = envoy.output.mean()
    assert len(found) == 4
    return {"found": found}


@parity(tiny.GPT2, rename={"transformer.h": "layers", "mlp": "feed_forward"})
def test_renamed_modules(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        renamed = model.layers[1].feed_forward.output.save()
        original = model.transformer.h[2].mlp.output.save()
    return {"renamed": renamed, "original": original}


@parity(tiny.GPT2)
def test_a_tensor_of_token_ids(model: Any, remote: Any) -> dict[str, Any]:
    ids = torch.tensor([[5, 17, 300, 42]])
    with model.trace(ids, remote=remote):
        seen = model.transformer.wte.input.save()
        logits = model.lm_head.output.save()
    assert seen.tolist() == ids.tolist()
    return {"logits": logits, "seen": seen}


@parity(tiny.GPT2)
def test_an_encoding_with_its_mask(model: Any, remote: Any) -> dict[str, Any]:
    encoding = model.tokenizer([PROMPT, OTHER], return_tensors="pt", padding=True)
    with model.trace(encoding, remote=remote):
        logits = model.lm_head.output[:, -1].save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_embeddings_in_place_of_tokens(model: Any, remote: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    embeddings = torch.randn(1, 6, 64, generator=generator)
    with model.trace(inputs_embeds=embeddings, remote=remote):
        logits = model.lm_head.output.save()
    return {"logits": logits}


@parity(tiny.GPT2)
def test_a_parameter_and_the_configuration(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        corner = model.transformer.h[0].mlp.c_fc.weight[:4, :4].clone().save()
        layers = nnsight.save(model.config.n_layer)
        model.output.save()
    return {"corner": corner, "layers": layers}


@parity(tiny.GPT2)
def test_the_tokenizer_in_the_block(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        best = model.lm_head.output[0].argmax(dim=-1)
        words = nnsight.save(model.tokenizer.batch_decode(best[:, None]))
        ids = nnsight.save(model.tokenizer(OTHER)["input_ids"])
    return {"words": words, "ids": ids}


@parity(tiny.GPT2)
def test_numbers_computed_beside_the_model(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        logits = model.lm_head.output[0, -1]
        probabilities = logits.softmax(-1)
        entropy = (probabilities * -probabilities.log()).sum().save()
        top = probabilities.topk(5).save()
    return {"entropy": entropy, "values": top.values, "indices": top.indices}
