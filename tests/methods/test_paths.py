"""`mediate.paths`: by hand where the paths are known, and as whole nodes where a node has no other way out."""

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from mediated import countries, of_values
from pydantic import ValidationError
from small_models import FACTS_GPT, FACTS_MAMBA, facts, of_family

from interlace.methods import find
from interlace.methods.base import ModelFacts, Result
from interlace.methods.mediate.path_spec import PathParams
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import capture
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidRequest

PATHS = find("mediate.paths")


def _paths(model: Any, folder: Path, pairs: Any, senders: Any, receivers: Any, **more: Any) -> Result:
    params = {"pairs": pairs, "senders": senders, "receivers": receivers, **more}
    return run(PATHS, model, params, Notebook(folder, bar=False))


def _effects(result: Result) -> dict[tuple[Any, ...], float]:
    """By sender, layer, receiver, layer."""
    return {(*row[:2], *row[3:5]): row[6] for row in result.table("paths").rows}  # type: ignore[misc]


def _whole(result: Result) -> float:
    (row,) = result.table("senders").rows
    return row[3]  # type: ignore[return-value]


def test_the_ways_of_a_planted_relay(tmp_path: Path) -> None:
    model = planted.relay()
    pairs = of_values(8, 0, 0)
    receivers = [{"site": "logits"}] + [
        {"site": site, "layer": layer} for site in ("attn_out", "mlp_out") for layer in range(4)
    ]
    result = _paths(model, tmp_path, pairs, {"family": "parts", "sites": ["attn_out", "mlp_out"]}, receivers, batch=24)
    effects = _effects(result)
    total = result.metric("total_effect").value
    direct, relayed = effects["attn_out", 0, "logits", None], effects["attn_out", 0, "attn_out", 2]
    assert relayed / direct > 3  # of which the head reads three times as much
    assert direct + relayed == pytest.approx(total, rel=0.05)
    assert effects["attn_out", 2, "logits", None] == pytest.approx(relayed, rel=0.02)
    known = {("attn_out", 0, "logits", None), ("attn_out", 0, "attn_out", 2), ("attn_out", 2, "logits", None)}
    assert max(abs(effect) for way, effect in effects.items() if way not in known) < 1e-4
    assert len(effects) == 8 + sum((4 - layer - 1) * 4 + 1 for layer in range(4))  # to the logits, ahead, in the block
    # All ways together are the node.
    both = [{"site": "attn_out", "layer": 2}, {"site": "logits"}]
    only = {"family": "parts", "sites": ["attn_out"], "layers": [0]}
    joint = _paths(model, tmp_path, pairs, only, both, joint=True)
    (row,) = joint.table("paths").rows
    assert row[3] == "attn_out 2 + logits"
    assert row[6] == pytest.approx(_whole(joint), abs=1e-4) == pytest.approx(total, abs=1e-4)
    # At the wrong token nothing is heard; at the last, all.
    for at, part in ((0, 0.0), (2, 1.0)):
        heard = [{"site": "attn_out", "layer": 2, "position": at}]
        assert _effects(_paths(model, tmp_path, pairs, only, heard))["attn_out", 0, "attn_out", 2] == pytest.approx(
            part * relayed, abs=1e-4
        )
    assert len(result.plot().axes) == 1


def test_the_direct_way_is_the_head_on_what_is_added(tmp_path: Path) -> None:
    model = facts(FACTS_GPT)
    pairs = countries(2)
    sites = Sites.of(model)
    receivers = [{"site": "logits"}]
    result = _paths(
        model, tmp_path, pairs, {"family": "parts", "sites": ["mlp_out"], "layers": [1], "positions": [-1]}, receivers
    )
    module = model._module
    states: list[dict[str, torch.Tensor]] = []
    places = {"mlp_out": sites.place("mlp_out", 1), "end": sites.place("resid_post", 5)}
    for side in ("base", "source"):
        ids = torch.tensor([model.tokenizer(pair[side]).input_ids for pair in pairs])
        with torch.no_grad(), capture.captured(places) as found:
            module(input_ids=ids)
        states.append({name: state[:, -1] for name, state in found.items()})
    with torch.no_grad():
        moved = states[0]["end"] + states[1]["mlp_out"] - states[0]["mlp_out"]
        gap = [module.lm_head(module.transformer.ln_f(end)) for end in (moved, states[0]["end"])]
    asia, europe = (model.tokenizer(f" {name}", add_special_tokens=False).input_ids[0] for name in ("Asia", "Europe"))
    by_hand = float(((gap[0] - gap[1])[:, asia] - (gap[0] - gap[1])[:, europe]).mean())
    assert _effects(result)["mlp_out", 1, "logits", None] == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_where_a_node_has_no_other_way_its_paths_are_the_node(name: str, tmp_path: Path) -> None:
    model = facts(FACTS_GPT) if name == "gpt2" else of_family(name)
    pair = {"base": "The city is", "source": "The city of", "answer": " Paris", "source_answer": " two"}
    pairs = countries(2) if name == "gpt2" else [pair] * 2
    last = Sites.of(model).n_layers - 1
    ends = [{"site": "mlp_out", "layer": last}, {"site": "logits"}]
    attention = {"family": "parts", "sites": ["attn_out"], "layers": [last]}
    joint = _paths(model, tmp_path, pairs, attention, ends, joint=True)
    assert abs(_whole(joint)) > 1e-3
    assert joint.table("paths").rows[0][6] == pytest.approx(_whole(joint), abs=1e-4)
    mlps = _paths(model, tmp_path, pairs, attention, ends[1:], through="mlps")
    assert mlps.table("paths").rows[0][6] == pytest.approx(_whole(mlps), abs=1e-4)
    heads = _paths(model, tmp_path, pairs, {"family": "heads", "layers": [last]}, ends[1:], through="mlps", batch=5)
    wholes = {row[0]: row[3] for row in heads.table("senders").rows}
    for row in heads.table("paths").rows:
        assert row[6] == pytest.approx(wholes[row[0]], abs=1e-4)
    effects = _effects(_paths(model, tmp_path, pairs, attention, ends))
    alone = abs(effects["attn_out", last, "mlp_out", last])
    assert alone < 1e-4 if name == "neox" else alone > 1e-4  # its attention and its MLP read the same stream
    # One block before, a head hears what its attention hears, head by head.
    if name == "gpt2":
        before = {"family": "parts", "sites": ["mlp_out"], "layers": [last - 1]}
        whole = [{"site": "attn_out", "layer": last}]
        parts = [{"site": "head", "layer": last, "head": head} for head in range(4)]
        one = _paths(model, tmp_path, pairs, before, whole).table("paths").rows[0][6]
        other = _paths(model, tmp_path, pairs, before, parts, joint=True).table("paths").rows[0][6]
        assert one == pytest.approx(other, abs=1e-4)
        assert abs(one) > 1e-3  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_queries_keys_and_values_are_all_that_attention_hears(name: str, tmp_path: Path) -> None:
    model = facts(FACTS_GPT) if name == "gpt2" else of_family(name)
    pair = {"base": "The city is", "source": "The city of", "answer": " Paris", "source_answer": " two"}
    pairs = countries(2) if name == "gpt2" else [pair] * 2
    sites = Sites.of(model)
    last = sites.n_layers - 1
    before = {"family": "parts", "sites": ["mlp_out"], "layers": [last - 1]}

    def heard(*receivers: dict[str, Any]) -> float:
        found = _paths(model, tmp_path, pairs, before, [{"layer": last, **one} for one in receivers], joint=True)
        return found.table("paths").rows[0][6]  # type: ignore[return-value]

    whole = heard({"site": "attn_out"})
    assert abs(whole) > 1e-4
    assert heard(*({"site": f"attn_{one}"} for one in "qkv")) == pytest.approx(whole, abs=1e-4)
    for one in "qkv":
        alone = heard({"site": f"attn_{one}"})
        heads = [head for head in range(sites.n_heads) if _has(sites, f"attn_{one}:{head}", last)]
        assert heard(*({"site": f"attn_{one}", "head": head} for head in heads)) == pytest.approx(alone, abs=1e-4)
        assert abs(alone - whole) > 1e-5, "no one of them is all of it"


def _has(sites: Sites, site: str, layer: int) -> bool:
    try:
        return bool(sites.place(site, layer))
    except InvalidRequest:
        return False


def test_paths_of_a_mamba(tmp_path: Path) -> None:
    model = facts(FACTS_MAMBA)
    pairs = countries(2)
    last = Sites.of(model).n_layers - 1
    before = {"family": "parts", "sites": ["mixer_out"], "layers": [last - 1]}
    end = {"site": "logits"}
    joint = _paths(model, tmp_path, pairs, before, [{"site": "mixer_out", "layer": last}, end], joint=True)
    assert joint.table("paths").rows[0][6] == pytest.approx(_whole(joint), abs=1e-3)
    halves = [{"site": f"mixer_in.{half}", "layer": last} for half in ("x", "gate")]
    parts = _paths(model, tmp_path, pairs, before, [*halves, end], joint=True)
    assert parts.table("paths").rows[0][6] == pytest.approx(_whole(joint), abs=1e-3)
    alone = _effects(_paths(model, tmp_path, pairs, before, [*halves, end]))
    assert min(map(abs, alone.values())) > 1e-3
    assert all(abs(one - _whole(joint)) > 1e-3 for one in alone.values())  # no one of them is all of it
    assert _effects(
        _paths(model, tmp_path, pairs, {"family": "parts", "sites": ["mixer_out"], "layers": [last]}, [end])
    )["mixer_out", last, "logits", None] == pytest.approx(
        _whole(_paths(model, tmp_path, pairs, {"family": "parts", "sites": ["mixer_out"], "layers": [last]}, [end])),
        abs=1e-4,
    )
    with pytest.raises(InvalidRequest, match="a mamba has no MLPs"):
        _paths(model, tmp_path, pairs, before, [end], through="mlps")
    with pytest.raises(InvalidRequest, match="A mamba has no heads"):
        _paths(model, tmp_path, pairs, {"family": "heads"}, [end])


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    model = planted.relay()
    pairs = of_values(4, 0, 0)
    back = [{"site": "mlp_out", "layer": 0}]
    with pytest.raises(InvalidRequest, match="No sender comes before any receiver"):
        _paths(model, tmp_path, pairs, {"family": "parts", "sites": ["mlp_out"]}, back)
    with pytest.raises(InvalidRequest, match=r"8 paths of 4 pairs are 96 patched rows, and `params\.budget` is 5"):
        _paths(
            model,
            tmp_path,
            pairs,
            {"family": "parts", "sites": ["attn_out", "mlp_out"]},
            [{"site": "logits"}],
            budget=5,
        )
    with pytest.raises(InvalidRequest, match="The layer is 7"):
        _paths(model, tmp_path, pairs, {"family": "parts", "sites": ["mlp_out"]}, [{"site": "mlp_out", "layer": 7}])
    for wrong in ({"site": "logits", "layer": 1}, {"site": "head", "layer": 1}, {"site": "mlp_out"}):
        with pytest.raises(ValidationError, match="a receiver has a `layer`"):
            PathParams(pairs=pairs, senders={"family": "parts", "sites": ["mlp_out"]}, receivers=[wrong])  # type: ignore[arg-type, list-item]


def test_what_paths_would_cost() -> None:
    known = ModelFacts(n_params=9, n_layers=4, hidden_size=32, vocab_size=50)
    senders = {"family": "parts", "sites": ["mlp_out"]}
    few = PATHS.estimate(PathParams(pairs=of_values(4, 0, 0), senders=senders, batch=4), known)  # type: ignore[arg-type]
    ends = [{"site": "logits"}, {"site": "mlp_out", "layer": 3}]
    more = PathParams(pairs=of_values(4, 0, 0), senders=senders, receivers=ends, batch=4)  # type: ignore[arg-type]
    assert few.forwards < PATHS.estimate(more, known).forwards
    assert few.backwards == 0
