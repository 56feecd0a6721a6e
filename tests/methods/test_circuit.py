"""Circuits: the planted one is found and is enough, edges add up to effects exactly, and pictures can be read."""

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import circuits
import networkx
import planted
import pytest
import small_models
import torch
from pydantic import ValidationError

from interlace.methods import find
from interlace.methods.base import ModelFacts
from interlace.methods.circuit.spec import EvaluateParams, NodesParams
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import capture
from interlace.methods.shared.circuits.circuit import Circuit
from interlace.methods.shared.circuits.graph import METRIC_ID, Graph
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.ranking import spearman
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

NODES, EDGES, EVALUATE = find("circuit.nodes"), find("circuit.edges"), find("circuit.evaluate")
FACTS = ModelFacts(n_params=200_000, n_layers=4, hidden_size=64, vocab_size=400)


@pytest.fixture
def report(tmp_path: Path) -> Notebook:
    return Notebook(tmp_path, bar=False)


def kept(report: Notebook, d_sae: int = 24) -> list[dict[str, Any]]:
    """Random dictionaries at four places of gpt2-tiny."""
    places = [("embed", None), ("attn_out", 1), ("mlp_out", 1), ("resid_post", 2)]
    return [
        {"sae": report.artifact(*circuits.artifact(64, d_sae, number, site=site, layer=layer))}
        for number, (site, layer) in enumerate(places)
    ]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Notebook, dict[str, Any]]:
    """A model that carries a subject's object to its last token, and dictionaries that have the directions of it.

    Features 0 to 3 are the objects as subjects have them, 4 to 7 as answers are read; 8 to 23 are of no use.
    """
    model, said = planted.relation()
    objects = sorted({answer for _, answer in said})
    table, head = model._module.transformer.wte.weight.detach(), model._module.lm_head.weight.detach()
    number = model.tokenizer.convert_tokens_to_ids
    means = torch.stack([table[[number(one) for one, answer in said if answer == name]].mean(0) for name in objects])
    sources = torch.linalg.qr((means - table[number("is")]).mT)[0].mT
    sources = sources * (sources @ (means - table[number("is")]).mT).diagonal().sign()[:, None]
    targets = head[[number(name) for name in objects]]
    useless = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([sources, targets, 0.3 * useless / useless.norm(dim=-1, keepdim=True)])
    weights = {"W_dec": rows, "W_enc": rows.mT.contiguous(), "b_dec": table[number("is")], "b_enc": torch.zeros(24)}
    report = Notebook(tmp_path_factory.mktemp("known"), bar=False)
    made = Dictionary("standard", weights)
    saes = [
        {"sae": report.artifact("sae", weights, made.config()), "site": "resid_post", "layer": layer}
        for layer in (0, 1)
    ]
    data = [
        {"clean": f"{one} is", "patch": f"{other} is", "answer": answer, "patch_answer": wrong}
        for (one, answer), (other, wrong) in itertools.pairwise(said)
    ]
    return model, report, {"saes": saes, "data": data[:12]}


def test_a_planted_circuit_is_found_and_is_enough(known: tuple[Any, Notebook, dict[str, Any]]) -> None:
    model, report, asked = known
    one = [example for example in asked["data"] if example["answer"] == "object1"]
    for method in ("ig", "exact"):
        result = run(NODES, model, {**asked, "data": one, "method": method}, report)
        total = result.metric("total_effect").value
        assert total < -0.5
        rows = result.table("nodes").rows
        # At the subject the object's feature in block 0, at the last token the answer's after block 1: of the pair both
        # lose the clean one and gain the other.
        best = {row[:4] for row in rows if abs(row[4]) > 0.15 * abs(total)}
        assert {("resid_post", 0, 0, 1), ("resid_post", 1, 1, 5)} <= best
        assert {row[3] for row in rows[:2]} <= {1, 2, 5, 6}
        (row,) = [row for row in result.table("sites").rows if row[1] == 1]
        assert row[-1] == pytest.approx(total, rel=0.02)  # after block 1 there is nothing else
    edges = run(EDGES, model, {**asked, "data": one, "nodes": result.circuit, "max_nodes": 8}, report)
    nodes = [row[:4] for row in edges.table("nodes").rows]
    strongest = edges.table("edges").rows
    assert strongest, edges.metrics
    pairs = {(nodes[source], nodes[target]) for source, target, _ in strongest[:6] if target >= 0}
    assert (("resid_post", 0, 0, 1), ("resid_post", 1, 1, 5)) in pairs

    whole = run(NODES, model, {**asked, "aggregate": "sum_pos"}, report)
    params = {**asked, "nodes": whole.circuit, "sizes": [0, 16, 2000], "errors": "keep", "controls": 4}
    none, few, every = run(EVALUATE, model, params, report).table("faithfulness").frame().to_dict("records")
    assert none["faithfulness"] == 0
    assert few["size"] == 16
    assert few["faithfulness"] > 0.8
    assert few["completeness"] < 0.2
    assert every["faithfulness"] == pytest.approx(1, abs=0.05)


def test_all_nodes_are_the_model_and_none_are_nothing(report: Notebook) -> None:
    model = small_models.of_family("gpt2")
    before = circuits.hooks(model._module), [one.requires_grad for one in model._module.parameters()]
    saes, pairs = kept(report), circuits.PAIRS[:1]
    alone = [{key: value for key, value in one.items() if key != "patch"} for one in pairs]
    for data, more in ((alone, {"ablation": "zero"}), (pairs, {"ablation": "resample"}), (pairs, {"ablation": "mean"})):
        nodes = run(NODES, model, {"saes": saes, "data": data, "method": "atp", "topk": 20_000, "check": 0}, report)
        asked = {"saes": saes, "data": data, "nodes": nodes.circuit, "controls": 1, **more}
        result = run(EVALUATE, model, {**asked, "sizes": [0, 20_000]}, report)
        none, every = result.table("faithfulness").rows
        m_model, m_empty = result.metric("m_model").value, result.metric("m_empty").value
        assert abs(m_model - m_empty) > 1e-2
        assert none[6] == pytest.approx(m_empty, abs=1e-5)
        # What a patch does not change is in no circuit, and is as it is in its own patch prompt, of which there is one.
        assert every[6] == pytest.approx(m_model, abs=1e-4)
        assert every[7] == pytest.approx(1, abs=1e-2)
        assert none[10] == pytest.approx(1, abs=1e-2)  # without nothing it is the model
    free = run(EVALUATE, model, {**asked, "sizes": [0], "start_layer": 3}, report)
    assert free.table("faithfulness").rows[0][6] == pytest.approx(m_model, abs=1e-5)  # all is given
    assert (circuits.hooks(model._module), [one.requires_grad for one in model._module.parameters()]) == before


def test_what_a_node_does_is_the_sum_of_its_edges(report: Notebook) -> None:
    model = small_models.of_family("gpt2")
    saes = kept(report, d_sae=10)
    data = [{"clean": "Paris is", "answer": "Rome"}, {"clean": "John is", "answer": "two"}]
    for aggregate in ("none", "sum_pos"):
        asked = {"saes": saes, "data": data[:1] if aggregate == "none" else data, "metric": "logprob", "method": "atp"}
        if aggregate == "none":
            asked["metric"] = "neg_logprob"
        nodes = run(NODES, model, {**asked, "aggregate": aggregate}, report)
        passed = {name: asked[name] for name in ("saes", "data")}
        edges = run(EDGES, model, {**passed, "nodes": nodes.circuit, "max_nodes": 5000, "topk": 100_000}, report)
        rows = edges.table("nodes").rows
        sums = [0.0] * len(rows)
        for source, target, weight in edges.table("edges").rows:
            sums[source] += weight
            assert target < 0 or rows[source][1] is None or rows[source][1] <= rows[target][1]
        assert len(rows) > 30
        torch.testing.assert_close(torch.tensor(sums), torch.tensor([row[4] for row in rows]), rtol=1e-3, atol=2e-5)
        assert max(map(abs, sums)) > 0.01
        assert any(target == -1 for _, target, _ in edges.table("edges").rows)


def test_a_probe_is_a_metric_and_what_leaves_is_bounded(report: Notebook) -> None:
    model = small_models.of_family("gpt2")
    head = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    config = {"kind": "label", "classes": ["a", "b"], "position": "mean", "site": "resid_post"}
    probe = report.artifact("probe", {"3.label": head, "3.label.bias": torch.tensor([1.0, 2.0])}, config)
    data = [{"clean": "Paris is the city", "answer": "b"}]
    asked = {"saes": kept(report), "data": data, "metric": "probe_logit", "head": {"probe": probe}}
    result = run(NODES, model, {**asked, "method": "exact", "aggregate": "sum_pos", "topk": 7}, report)
    place = Sites.of(model).place("resid_post", 3)
    states: list[torch.Tensor] = []
    handle = place.module.register_forward_hook(
        lambda _m, _a, out: states.append(out[0] if type(out) is tuple else out)
    )
    with torch.no_grad():
        model._module(input_ids=torch.tensor([model.tokenizer(data[0]["clean"])["input_ids"]]))
    handle.remove()
    assert result.metric("m_clean").value == pytest.approx(float(states[0][0].mean(0) @ head[1] + 2.0), abs=1e-4)
    circuit = Circuit.of(report.open(result.circuit))
    assert len(circuit.nodes) == 7
    assert [one.effect for one in circuit.nodes] == sorted((one.effect for one in circuit.nodes), key=lambda x: -abs(x))
    assert all(one.position is None for one in circuit.nodes)
    largest = abs(circuit.nodes[0].effect)
    some = run(NODES, model, {**asked, "method": "exact", "aggregate": "sum_pos", "threshold": largest / 2}, report)
    assert all(abs(row[4]) >= largest / 2 for row in some.table("nodes").rows)
    assert result.rows == result.metric("active_nodes").value
    with pytest.raises(InvalidRequest, match=r"active nodes are .* patched rows, and `params.budget` is 10"):
        run(NODES, model, {**asked, "method": "exact", "budget": 10}, report)
    with pytest.raises(InvalidRequest, match="'c' is no class"):
        run(NODES, model, {**asked, "data": [{"clean": "Paris", "answer": "c"}]}, report)


def test_a_head_that_leaves_out_the_first_tokens_leaves_them_out_in_a_circuit(report: Notebook) -> None:
    """`classifier.shift` with `skip_first` makes such a head."""
    model = small_models.of_family("gpt2")
    texts = ["Paris is the city", "two plus two is", "Rome is the city", "one plus one is"]
    asked = {"saes": kept(report), "ambiguous": texts, "labels": ["place", "sum"] * 2, "layer": 3, "epochs": 9}
    head = run(find("classifier.shift"), model, {**asked, "skip_first": 2, "ig_steps": 1, "candidates": 1}, report).head
    probe = report.open(head, "probe")
    ids = torch.tensor([model.tokenizer(texts[0])["input_ids"]])
    state = capture.state_at(model._module, ids, Sites.of(model).place("resid_post", 3))
    said = state[0, 2:].mean(0) @ probe.tensors["3.label"].T + probe.tensors["3.label.bias"]
    data = [{"clean": texts[0], "answer": "place"}]
    params = {"saes": kept(report), "data": data, "metric": "probe_logit", "head": {"probe": head}}
    result = run(NODES, model, {**params, "method": "atp", "aggregate": "sum_pos"}, report)
    assert result.metric("m_clean").value == pytest.approx(float(said[0]), abs=1e-4)


def test_estimates_are_held_against_exact_patching_and_cost_what_was_said(report: Notebook, tmp_path: Path) -> None:
    """The same nodes as the exact method's."""
    model = small_models.of_family("gpt2")
    asked = {"saes": kept(report), "data": circuits.PAIRS[:2]}
    exact = run(NODES, model, {**asked, "method": "exact", "topk": 20_000}, report)
    known = {row[:4]: row[4] for row in exact.table("nodes").rows}
    result = run(NODES, model, {**asked, "check": 10, "ig_endpoints": "midpoint"}, report)
    rows = result.table("checked").rows
    assert len(rows) == 10
    for *node, _, value in rows:
        assert value == pytest.approx(known.get(tuple(node), 0.0), abs=1e-6)
    estimates, exactly = (torch.tensor(column) for column in list(zip(*rows, strict=True))[-2:])
    assert result.metric("spearman").value == pytest.approx(spearman(estimates, exactly))
    assert result.metric("slope").n == 10
    near = run(NODES, model, {**asked, "check": 10, "ig_reach": 1e-4, "ig_steps": 1}, report)
    one_gradient = run(NODES, model, {**asked, "check": 10, "method": "atp"}, report)
    told = [[row[-2] for row in one.table("checked").rows] for one in (near, one_gradient)]
    assert told[0] == pytest.approx(told[1], rel=1e-2, abs=1e-6), "all points are at the clean run"
    assert told[0] != pytest.approx([row[-2] for row in rows], rel=1e-2, abs=1e-6)
    assert result.rows <= 20
    spent = Notebook(tmp_path / "other", bar=False)
    saes = kept(spent)
    for method in ("atp", "ig"):
        spent.cost["forwards"] = spent.cost["backwards"] = spent.cost["tokens"] = 0
        few = {"saes": saes, "data": circuits.PAIRS[:2], "method": method, "check": 0}
        run(NODES, model, few, spent)
        cost = NODES.estimate(NodesParams.model_validate(few), FACTS)
        assert (cost.forwards, cost.backwards) == (spent.cost["forwards"], spent.cost["backwards"])
        assert cost.tokens >= spent.cost["tokens"]


def test_pictures(report: Notebook) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    nodes = [("embed", None, 0, 7, 0.5), ("resid_post", 3, 1, -1, -0.25), ("attn_out", 3, 1, 2, 0.1)]
    graph = Graph.of_tables(nodes, [(0, 1, 0.2), (1, -1, -0.6)], [evil, "b"], "logprob", {"embed/0/7": "<b>cities"})
    assert [one.id for one in graph.dots] == ["embed/0/7", "resid_post.3/1/error", "attn_out.3/1/2"]
    drawn = ElementTree.fromstring(graph.svg())
    name = "{http://www.w3.org/2000/svg}"
    paths = {one.get("data-target"): float(str(one.get("stroke-width"))) for one in drawn.iter(f"{name}path")}
    assert paths[METRIC_ID] > paths["resid_post.3/1/error"]  # the wider, the heavier
    groups = {one.get("data-id"): one for one in drawn.iter(f"{name}g")}
    circle = groups["embed/0/7"].find(f"{name}circle")
    square = groups["resid_post.3/1/error"].find(f"{name}rect")
    assert circle is not None
    assert circle.get("fill") == "#2166ac"  # the largest effect
    assert square is not None
    heights = [
        float(groups[one].find(f"{name}{shape}").get(at))
        for one, shape, at in (  # type: ignore[union-attr, arg-type]
            ("embed/0/7", "circle", "cy"),
            ("attn_out.3/1/2", "circle", "cy"),
            ("resid_post.3/1/error", "rect", "y"),
        )
    ]
    assert heights == sorted(heights, reverse=True)  # later is higher
    page = graph.html(title="<i>")
    assert evil not in page
    assert "<b>cities" not in page
    assert "<i>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    data = page.partition('id="data">')[2].partition("</script>")[0]
    loaded = networkx.node_link_graph(json.loads(data), edges="edges")
    assert loaded.nodes["embed/0/7"]["token"] == evil
    assert loaded.edges["resid_post.3/1/error", METRIC_ID]["weight"] == -0.6
    assert json.loads(data) == json.loads(graph.json())
    assert len(graph.largest(1, 5).lines) == 0


def test_results_draw_themselves(report: Notebook) -> None:
    model = small_models.of_family("gpt2")
    asked = {"saes": kept(report), "data": circuits.PAIRS[:2]}
    nodes = run(NODES, model, {**asked, "method": "atp", "check": 0}, report)
    edges = run(EDGES, model, {**asked, "nodes": nodes.circuit, "max_nodes": 6}, report)
    graph = edges.graph()
    assert len(graph.dots) == 6
    assert "".join(one.token for one in graph.dots if one.position == 5).startswith((" ", ""))
    assert len(edges.plot().axes) == 2
    assert len(nodes.plot().axes) == 2
    result = run(EVALUATE, model, {**asked, "nodes": edges.circuit, "thresholds": [0.0, 0.01]}, report)
    assert len(result.plot().axes[0].lines) >= 3


def test_what_does_not_fit_is_refused(report: Notebook) -> None:
    model = small_models.of_family("gpt2")
    asked = {"saes": kept(report), "data": circuits.PAIRS[:1]}
    nodes = run(NODES, model, {**asked, "method": "atp", "check": 0}, report)
    longer = [{"clean": "The city of New York is", "answer": "Paris", "patch_answer": "two"}]
    mixed = [{key: value for key, value in one.items() if key != "patch"} for one in circuits.PAIRS[:1]]
    with pytest.raises(InvalidRequest, match="keeps positions"):
        run(NODES, model, {**asked, "data": [*mixed, *longer]}, report)
    with pytest.raises(InvalidRequest, match="of prompts of 6 tokens; `data` has prompts of 8"):
        run(EVALUATE, model, {**asked, "data": longer, "nodes": nodes.circuit}, report)
    with pytest.raises(InvalidRequest, match=r"The circuit has attn_out\.1 with 24 features; `saes` has embed with 24"):
        run(EDGES, model, {**asked, "saes": asked["saes"][:1], "nodes": nodes.circuit}, report)
    with pytest.raises(InvalidRequest, match="`ablation: resample`"):
        run(EVALUATE, model, {**asked, "data": mixed, "nodes": nodes.circuit, "ablation": "resample"}, report)
    with pytest.raises(ValidationError, match="two ways to say the same"):
        EvaluateParams(**asked, nodes=nodes.circuit, sizes=[1], thresholds=[0.1])
    with pytest.raises(InvalidArtifact, match="of the kind sae; expected circuit"):
        run(EDGES, model, {**asked, "nodes": asked["saes"][0]["sae"]}, report)
    tensors, config = Circuit.of(report.open(nodes.circuit)).pack()
    broken = report.artifact("circuit", {**tensors, "nodes": tensors["nodes"] + 9}, config)
    with pytest.raises(InvalidArtifact, match="not in `sites`"):
        Circuit.of(report.open(broken))
