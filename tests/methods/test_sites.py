"""The places of each family: they are where the table says, they fire once, and they add up; others are refused."""

import pytest
import small_models
import torch
from small_models import FAMILIES, of_family
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
)

from interlace.methods.shared import capture
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidRequest

_IDS = torch.tensor([[5, 9, 2, 7, 11, 4]])
_ADDS = {"mamba": ["mixer_out"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_every_block_add_up_to_the_stream(family: str) -> None:
    sites = Sites.of(of_family(family))
    adds = _ADDS.get(family, ["attn_out", "mlp_out"])
    places = {
        (site, layer): sites.place(site, layer) for site in ["resid_post", *adds] for layer in range(sites.n_layers)
    }
    with torch.no_grad(), capture.captured(places) as states:
        sites.module(input_ids=_IDS, use_cache=False)
    for layer in range(1, sites.n_layers):
        total = states["resid_post", layer - 1] + sum(states[site, layer] for site in adds)
        torch.testing.assert_close(total, states["resid_post", layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_heads_are_what_the_projection_reads_and_sum_to_its_output(family: str) -> None:
    sites = Sites.of(of_family(family))
    heads = {head: sites.place(f"head:{head}", 1) for head in range(sites.n_heads)}
    with torch.no_grad(), capture.captured({**heads, "out": sites.place("attn_out", 1)}) as states:
        sites.module(input_ids=_IDS, use_cache=False)
        together = torch.cat([states[head] for head in range(sites.n_heads)], -1)
        projection = sites.projection("attn_out", 1)
        torch.testing.assert_close(projection.module(together), states["out"], rtol=1e-5, atol=1e-5)


def test_the_state_of_mamba_before_its_gate_is_what_the_gate_multiplies() -> None:
    sites = Sites.of(of_family("mamba"))
    names = ["ssm_out", "mixer_act", "mixer_in.gate", "mixer_in.x"]
    with torch.no_grad(), capture.captured({name: sites.place(name, 2) for name in names}) as states:
        sites.module(input_ids=_IDS, use_cache=False)
    gated = states["ssm_out"] * torch.nn.functional.silu(states["mixer_in.gate"])
    torch.testing.assert_close(gated, states["mixer_act"], rtol=1e-5, atol=1e-7)
    assert states["mixer_in.x"].shape == states["ssm_out"].shape == (1, 6, 256)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_are_gone_after_the_block(family: str) -> None:
    model = of_family(family)
    sites = Sites.of(model)
    before = small_models.logits(model)
    for site in sites.names:
        place = sites.place(site.replace(":K", ":1"), None if site == "embed" else 1)
        with capture.altered([(place, torch.zeros_like)]):
            assert (small_models.logits(model) - before).abs().max() > 1e-3, f"{site} has no effect"
    torch.testing.assert_close(small_models.logits(model), before, rtol=0, atol=0)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in sites.module.modules())


def test_a_site_or_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    sites = Sites.of(of_family("llama"))
    with pytest.raises(InvalidRequest, match=r"llama has no site 'ssm_out'.*resid_post.*K from 0 to 3"):
        sites.place("ssm_out", 0)
    with pytest.raises(InvalidRequest, match="has no site 'head:4'"):
        sites.place("head:4", 0)
    with pytest.raises(InvalidRequest, match="The layer is 3; a llama here has 0 to 2"):
        sites.place("resid_post", 3)
    with pytest.raises(InvalidRequest, match="has attn_out, mlp_out for edits"):
        sites.projection("resid_post", 0)


def test_norms_after_the_parts_are_where_gemma_adds_to_the_stream() -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 50}
    model = Gemma2ForCausalLM(Gemma2Config(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()
    sites = Sites.of(model)
    assert "attn_out" in sites.names
    assert sites.place("attn_out", 1).path == "model.layers.1.post_attention_layernorm"
    assert sites.projection("attn_out", 1).path == "model.layers.1.self_attn.o_proj"


def test_where_the_parts_do_not_add_up_they_are_refused_with_the_reason() -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 50}
    model = GraniteForCausalLM(GraniteConfig(**shape, num_attention_heads=4, residual_multiplier=0.5)).eval()
    sites = Sites.of(model)
    assert "resid_post" in sites.names
    with pytest.raises(
        InvalidRequest, match="block 0 gives something else than what it reads plus attn_out plus mlp_out"
    ):
        sites.place("mlp_out", 0)


def test_a_block_that_runs_twice_is_refused() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=16, vocab_size=50)).eval()
    model.transformer.h[1].mlp.c_proj = model.transformer.h[0].mlp.c_proj
    with pytest.raises(InvalidRequest, match="runs 2 times a forward, which must be once"):
        Sites.of(model).place("mlp_out", 0)


def test_a_model_of_another_family_is_refused_with_those_that_are_known() -> None:
    model = Mamba2ForCausalLM(
        Mamba2Config(num_hidden_layers=1, hidden_size=32, num_heads=4, head_dim=16, vocab_size=50, n_groups=1)
    )
    with pytest.raises(InvalidRequest, match="Nothing is known of the places in a Mamba2ForCausalLM; known are GPT-2"):
        Sites.of(model)


def test_a_patch_changes_its_row_and_token_and_nothing_before_it() -> None:
    sites = Sites.of(of_family("mamba"))
    place = sites.place("ssm_out", 1)
    stream = sites.place("resid_post", 1)
    rows = _IDS.repeat(3, 1)
    with torch.no_grad(), capture.captured({"s": place, "r": stream}) as clean:
        sites.module(input_ids=rows, use_cache=False)
    new = torch.randn(1, 256)
    patch = capture.Patch(place, torch.tensor([1]), torch.tensor([3]), new)
    with torch.no_grad(), capture.patched([patch]), capture.captured({"s": place, "r": stream}) as states:
        sites.module(input_ids=rows, use_cache=False)
    torch.testing.assert_close(states["s"][1, 3], new[0], rtol=1e-4, atol=1e-5)
    moved = (states["r"] - clean["r"]).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[1, 3]]


def test_a_patch_with_its_own_value_changes_nothing() -> None:
    for family in FAMILIES:
        sites = Sites.of(of_family(family))
        for site in sites.names:
            place = sites.place(site.replace(":K", ":0"), None if site == "embed" else 0)
            with torch.no_grad(), capture.captured({0: place}) as states:
                before = sites.module(input_ids=_IDS, use_cache=False).logits
            own = capture.Patch(place, torch.tensor([0]), torch.tensor([2]), states[0][0, 2:3])
            with torch.no_grad(), capture.patched([own]):
                after = sites.module(input_ids=_IDS, use_cache=False).logits
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_batches_are_of_one_length_and_bounded() -> None:
    rows = [[1, 2], [3], [4, 5], [6, 7], [8]]
    batches = [(numbers, ids.tolist()) for numbers, ids in capture.by_length(rows, 2)]
    assert batches == [([0, 2], [[1, 2], [4, 5]]), ([3], [[6, 7]]), ([1, 4], [[3], [8]])]


def test_falcon_mamba_is_known_too() -> None:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "state_size": 4, "vocab_size": 50}
    assert "ssm_out" in Sites.of(FalconMambaForCausalLM(FalconMambaConfig(**shape)).eval()).names
