"""Planted behaviours are found again by clustering what a model foresees, and what carries each is named."""

import json
import re
from base64 import b64decode
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from nnsight.modeling.transformers import TransformersModel

from interlace.methods import find
from interlace.methods.behaviors import grouping, samples, vectors
from interlace.methods.behaviors.spec import ClusterResult
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.circuits.attribution import ERROR
from interlace.methods.shared.circuits.circuit import Circuit
from interlace.methods.shared.circuits.metrics import LogitMetric
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

CLUSTER = find("behaviors.cluster")
#: Three behaviours: after the second word of a row its third is sure.
RULES = [["hot", "is", "cold"], ["two", "then", "three"], ["France", "has", "Paris"]]
FILLERS = ["the", "<b>", "day", "house"]


@pytest.fixture(scope="module")
def model() -> Any:
    """A blank model whose head has learned which word follows which."""
    tokenizer = planted.words(*RULES, FILLERS)
    module = planted.blank(tokenizer, n_layer=2, n_embd=32)
    with torch.no_grad():
        # The direction that all share keeps the last norm from making up for what is taken out.
        module.transformer.wte.weight.copy_(torch.eye(32)[: len(tokenizer)] + 4 * torch.eye(32)[-1])
        for rule in RULES:
            one, other = tokenizer.convert_tokens_to_ids(rule[1:])
            module.lm_head.weight[other, one] = 6.0
    return TransformersModel(module, tokenizer=tokenizer)


TEXTS = [" ".join([FILLERS[n % 4], *RULES[n % 3], FILLERS[(n + 1) % 4], *RULES[(n + 1) % 3]]) for n in range(24)]


def dictionary(layer: int = 0, share: float = 1.0) -> tuple[str, dict[str, torch.Tensor], dict[str, Any]]:
    """A feature for each word, which explains ``share`` of it."""
    weights = {
        "W_enc": torch.eye(32),
        "W_dec": share * torch.eye(32),
        "b_enc": torch.zeros(32),
        "b_dec": 4 * torch.eye(32)[-1],
    }
    return "sae", weights, {"architecture": "standard", "metadata": {"layer": layer, "site": "resid_post"}}


def cluster(model: Any, folder: Path, **more: Any) -> ClusterResult:
    notebook = Notebook(folder, bar=False)
    how = {"data": TEXTS, "saes": notebook.artifact(*dictionary()), "samples": 48, "clusters": 3, "last": 1}
    found = run(CLUSTER, model, {**how, "vectors": "sae_effect", "nodes": 2, "ig_steps": 3, **more}, notebook)
    assert isinstance(found, ClusterResult)
    return found


def of_rules(found: ClusterResult) -> list[set[str]]:
    """By cluster the words that are foreseen in it."""
    return [{token.strip() for token, _ in one.tokens} for one in found.clusters]


@pytest.mark.parametrize(
    ("vectors", "clustering", "target"),
    [("sae_effect", "kmeans", "loss"), ("sae_act", "spectral", "loss"), ("sae_effect", "neighbors", "logit")],
)
def test_each_behaviour_is_a_cluster_and_has_its_feature(
    model: Any, tmp_path: Path, vectors: str, clustering: str, target: str
) -> None:
    found = cluster(model, tmp_path, vectors=vectors, clustering=clustering, target=target)
    assert sorted(map(sorted, of_rules(found))) == [["Paris"], ["cold"], ["three"]]
    for one in found.clusters:
        answer = one.tokens[0][0].strip()
        asks = next(rule[1] for rule in RULES if rule[2] == answer)
        assert one.nodes[0].feature == model.tokenizer.convert_tokens_to_ids(asks)
        assert one.nodes[0].effect > 1, "zeroing it costs the answer"
        assert all(sample.before[-1].strip() == asks for sample in one.exemplars)
        assert one.loss < 0.3
    assert found.metric("silhouette", "vectors").value > found.metric("silhouette", "shuffled").value
    assert {one.feature for one in found.features} >= {one.nodes[0].feature for one in found.clusters}


def test_each_cluster_has_a_circuit_that_others_take(model: Any, tmp_path: Path) -> None:
    saes = [Notebook(tmp_path, bar=False).artifact(*dictionary(layer, 0.95)) for layer in (0, 1)]
    found = cluster(model, tmp_path, saes=saes, circuit_edges=8, circuit_nodes=20)
    assert found.artifacts == tuple(one.circuit for one in found.clusters)
    notebook = Notebook(tmp_path, bar=False)
    for one in found.clusters:
        assert one.circuit is not None
        kept = Circuit.of(notebook.open(one.circuit, "circuit"))
        assert {(node.name, node.feature) for node in kept.nodes} >= {(node.place, node.feature) for node in one.nodes}
        assert any(node.feature == ERROR for node in kept.nodes)
        # The same feature of block 0 acts by way of that of block 1, and this on the answer.
        asks = one.nodes[0].feature
        first, second = (next(n for n in one.nodes if n.place == f"resid_post.{layer}") for layer in (0, 1))
        assert first.feature == second.feature == asks
        graph = one.graph()
        assert {(line.source, line.target) for line in graph.lines} >= {
            (f"resid_post.0/*/{asks}", f"resid_post.1/*/{asks}"),
            (f"resid_post.1/*/{asks}", "m"),
        }
        told = [(kept.nodes[edge.source].feature, edge.weight) for edge in kept.edges]
        assert told == [(one.nodes[source].feature, pytest.approx(weight)) for source, _, weight in one.edges]
        params = {"saes": saes, "data": one.examples(), "nodes": one.circuit, "sizes": [4], "ablation": "zero"}
        measured = run(find("circuit.evaluate"), model, params, notebook)
        table = measured.table("faithfulness")
        assert dict(zip(table.columns, table.rows[0], strict=True))["faithfulness"] > 0.8
    assert len(cluster(model, tmp_path / "fewer", circuits=1).artifacts) == 1


def test_gradients_are_projected_and_leave_the_model_alone(model: Any) -> None:
    module, sites = model._module, Sites.of(model)
    answers = torch.tensor([3, 5])
    some = [samples.Chosen(0, 2, 0.1, (1, 2), 3), samples.Chosen(1, 2, 0.1, (1, 4), 5)]
    report = Notebook(bar=False)
    measure = LogitMetric("neg_logprob", sites, report, answers, torch.full_like(answers, -1))
    wanting = [one.requires_grad for one in module.parameters()]
    with evaluating(module), torch.no_grad():
        for block in module.transformer.h:  # else no weight of a block has a gradient
            block.mlp.c_fc.weight.normal_(generator=torch.Generator().manual_seed(0))
            block.mlp.c_proj.weight.normal_(generator=torch.Generator().manual_seed(1))
    try:
        with evaluating(module):
            wide = vectors.gradients(measure, some, 20_000, 1, report)
            again = vectors.gradients(measure, some, 20_000, 1, report)
            exact = torch.stack([whole(measure, number) for number in range(2)])
    finally:
        with torch.no_grad():
            for block in module.transformer.h:
                block.mlp.c_fc.weight.zero_()
                block.mlp.c_proj.weight.zero_()
    assert wide.shape == (2, 20_000)
    assert torch.equal(wide, again)
    # A random projection keeps lengths and angles.
    torch.testing.assert_close(wide @ wide.T, exact @ exact.T, rtol=0.1, atol=0.02 * float((exact @ exact.T).max()))
    assert [one.requires_grad for one in module.parameters()] == wanting
    assert all(one.grad is None for one in module.parameters())


def test_the_gradient_of_the_logit_is_that_of_its_distance_to_the_mean(model: Any) -> None:
    """What moves all logits alike moves nothing; where -log P is 0 already, its logit still has a slope."""
    sites, report = Sites.of(model), Notebook(bar=False)
    answers = torch.tensor(model.tokenizer.convert_tokens_to_ids(["cold"]))
    before = torch.tensor([model.tokenizer.convert_tokens_to_ids(["hot", "is"])])
    bias = torch.zeros(model._module.config.vocab_size, requires_grad=True)
    handle = model._module.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)
    try:
        with evaluating(model._module), torch.enable_grad():
            slopes = {
                name: torch.autograd.grad(
                    LogitMetric(name, sites, report, answers, torch.full_like(answers, -1))(before, [0]).sum(), bias
                )[0]
                for name in ("logit", "neg_logprob")
            }
    finally:
        handle.remove()
    assert float(slopes["logit"].sum().abs()) < 1e-6
    assert float(slopes["logit"][answers[0]]) == pytest.approx(1 - 1 / len(bias))
    assert float(slopes["neg_logprob"].norm()) < 0.1 < float(slopes["logit"].norm())


def whole(measure: LogitMetric, number: int) -> torch.Tensor:
    """The gradient as it is."""
    weights = vectors.learned(measure.sites.module)
    for one in weights:
        one.requires_grad_(True)
    before = torch.tensor([[1, 2 + 2 * number]])
    slopes = torch.autograd.grad(measure(before, [number]).sum(), weights)
    for one in weights:
        one.requires_grad_(False)
    return torch.cat([one.flatten() for one in slopes])


def test_weights_of_blocks_are_learned_and_no_others(model: Any) -> None:
    own = {id(one) for one in vectors.learned(model._module)}
    names = {name for name, one in model._module.named_parameters() if id(one) in own}
    assert all(name.startswith("transformer.h.") and ".ln_" not in name for name in names)
    assert len(names) == 2 * 8


def test_copied_tokens_are_no_samples(model: Any, tmp_path: Path) -> None:
    twice = [" ".join(["hot is cold the", "hot is cold"])] * 3 + TEXTS
    plain = cluster(model, tmp_path / "a", data=twice, samples=1000, skip_induction=False)
    without = cluster(model, tmp_path / "b", data=twice, samples=1000)
    assert plain.metric("samples").value - without.metric("samples").value == 3
    assert any("were asked for" in one for one in without.warnings)


def test_clusters_of_directions_by_size() -> None:
    dice = torch.Generator().manual_seed(0)
    middles = torch.eye(8)[[0] * 36 + [1] * 24 + [2] * 12]
    rows = (middles + 0.05 * torch.randn(72, 8, generator=dice)) * torch.arange(1, 73)[:, None]
    for clustering in ("kmeans", "spectral", "neighbors"):
        assert grouping.grouped(rows, 3, clustering, 0).tolist() == [0] * 36 + [1] * 24 + [2] * 12
    dealt = grouping.shuffled(rows, 0)
    assert torch.equal(dealt.sort(0).values, rows.sort(0).values)
    assert not torch.equal(dealt, rows)


class _Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_is_one_page_that_needs_nothing(model: Any, tmp_path: Path) -> None:
    found = cluster(model, tmp_path)
    reader = _Reader()
    reader.feed(found.page())
    assert {"script", "link", "img", "b"}.isdisjoint(reader.tags), "words of texts are no markup"
    inside = [link for link in reader.links if not link.startswith("data:application/json;base64,")]
    assert all(re.fullmatch(r"#c\d", link) for link in inside)
    graphs = [json.loads(b64decode(link.partition(",")[2])) for link in reader.links if link not in inside]
    assert [{node["feature"] for node in one["nodes"] if node["id"] != "m"} for one in graphs] == [
        {node.feature for node in one.nodes} for one in found.clusters
    ], "each cluster's circuit is a link that holds it"
    assert reader.tags.count("svg") == len(found.clusters)
    said = "".join(reader.words)
    assert "<b>" in said
    assert all(word in said for word in ("cold", "three", "Paris", "What carries it", "Kept as"))
    assert len(found.plot().axes) == 3


def test_what_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="tokens of the texts are foreseen"):
        cluster(model, tmp_path, ce_max=1e-6)
    with pytest.raises(InvalidRequest, match="needs saes"):
        cluster(model, tmp_path, saes=None)
    with pytest.raises(InvalidRequest, match="less than samples"):
        cluster(model, tmp_path, clusters=48)
    with pytest.raises(InvalidRequest, match="takes up to 8,192"):
        cluster(model, tmp_path, clustering="spectral", samples=9000)
