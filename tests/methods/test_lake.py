"""Heritage, comparison and authorship on planted weights; and that what jobs make is in the lake by itself."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_models
import tiny_diffusion
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import interlace
from interlace.methods import find
from interlace.methods.base import Opened
from interlace.methods.lake.measure import geometry
from interlace.methods.lake.plot import heritage, layers
from interlace.methods.lake.tree import Heritage, recover
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared import edits as _edits
from interlace.methods.shared import weights as _weights
from interlace.methods.shared.edits import Edit, pack
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

SIZE = 32


def moved(
    start: Mapping[str, Tensor], dice: torch.Generator, rank: int | None = None, size: float = 0.1
) -> dict[str, Tensor]:
    """Weights some way off, in a direction of their own; with a rank, a low one."""
    found = {}
    for name, one in start.items():
        step = torch.randn(one.shape, generator=dice)
        if rank is not None:
            step = torch.randn(SIZE, rank, generator=dice) @ torch.randn(rank, SIZE, generator=dice)
        found[name] = one + size * step / step.norm() * one.norm()
    return found


def seen(tensors: list[dict[str, Tensor]], *, sketched: bool = False) -> Any:
    def matrix(of: dict[str, Tensor], name: str) -> _weights.Matrix:
        found = _weights.Matrix.of(name, of[name])
        return (
            _weights.Matrix(None, found.sketch, found.spectrum, found.kurtosis, found.distinct) if sketched else found
        )

    models = [_weights.Weights(str(n), lambda name, of=of: matrix(of, name)) for n, of in enumerate(tensors)]
    return geometry(models, list(tensors[0]), 0)


def fresh(dice: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(SIZE, SIZE, generator=dice) for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def tree() -> tuple[list[dict[str, Tensor]], dict[int, int]]:
    """Two roots of three children, two of which have two: child -> parent."""
    dice = torch.Generator().manual_seed(3)
    tensors: list[dict[str, Tensor]] = []
    parent: dict[int, int] = {}
    for _ in range(2):
        root = len(tensors)
        tensors.append(fresh(dice))
        for number in range(3):
            child = len(tensors)
            tensors.append(moved(tensors[root], dice))
            parent[child] = root
            for _ in range(2 if number else 0):
                parent[len(tensors)] = child
                tensors.append(moved(tensors[child], dice))
    return tensors, parent


def edges(found: Heritage) -> dict[int, int]:
    return {edge.child: edge.parent for edge in found.edges}


@pytest.mark.parametrize("sketched", [False, True])
def test_a_planted_tree_is_found(tree: Any, sketched: bool) -> None:
    tensors, parent = tree
    found, n = seen(tensors, sketched=sketched), len(tensors)
    by_time = recover(found, [float(one) for one in range(n)], None)
    assert edges(by_time) == parent
    assert [len(family) for family in by_time.families] == [8, 8]
    assert by_time.fans == by_time.merges == by_time.duplicates == []
    assert all(0 < edge.margin <= 1 and edge.directed_by == "time" for edge in by_time.edges)
    bare = recover(found, [None] * n, None)
    assert {frozenset(pair) for pair in edges(bare).items()} == {frozenset(pair) for pair in parent.items()}
    known = recover(found, [None] * n, 0)
    assert {child: of for child, of in edges(known).items() if child < 8} == {
        child: of for child, of in parent.items() if child < 8
    }
    assert all(edge.directed_by == "root" for edge in known.edges if edge.child < 8)


def test_distances_are_distances(tree: Any) -> None:
    tensors, _ = tree
    found = seen(tensors[:4])
    assert torch.equal(found.squared.diag(), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found.squared, found.squared.T)
    exact = sum((tensors[0][name] - tensors[1][name]).double().square().sum() for name in tensors[0])
    torch.testing.assert_close(found.squared[0, 1], exact)
    lengths = found.squared.sqrt()
    for i in range(4):
        for j in range(4):
            assert (lengths[i, j] <= lengths[i] + lengths[:, j] + 1e-9).all()
    dice = torch.Generator().manual_seed(1)
    low = seen([tensors[0], moved(tensors[0], dice, rank=2)])
    assert low.rank[0, 1] == 2 * len(tensors[0])
    sketched = seen(tensors[:4], sketched=True)
    torch.testing.assert_close(sketched.relative[0, 1], found.relative[0, 1], rtol=0.1, atol=0)


def test_what_is_no_child_is_called_by_its_name(tree: Any) -> None:
    tensors, _ = tree
    dice = torch.Generator().manual_seed(5)
    one, n = tensors[1], 8
    levels = {name: (w / w.abs().max() * 7).round() * w.abs().max() / 7 for name, w in one.items()}
    order = torch.randperm(SIZE, generator=dice)
    permuted = {"a": one["a"][order], "b": one["b"][:, order], "c": one["c"]}
    far = {name: w[order][:, order.flip(0)] for name, w in one.items()}
    merge = {name: 0.3 * tensors[1][name] + 0.7 * tensors[2][name] for name in one}
    models = [*tensors[:n], levels, far, merge, dict(one), fresh(dice)]
    found = recover(seen(models), [None] * len(models), 0)
    assert edges(found)[n] == 1  # the quantised one
    assert n not in edges(found).values()
    assert found.duplicates == [(1, n + 3)]
    assert [(merged, *sorted(of)) for merged, *of, along in found.merges] == [(n + 2, 1, 2)]
    assert found.merges[0][3] == pytest.approx(0.7, abs=1e-4)
    assert (1, n + 1) in found.permuted
    assert [n + 1] in found.families
    assert [n + 4] in found.families  # a stranger
    assert permuted["c"] is one["c"]


def test_a_sweep_is_no_tree() -> None:
    dice = torch.Generator().manual_seed(7)
    root = fresh(dice)
    goal = moved(root, dice, size=0.3)
    sweep = [
        moved({name: root[name] + far * (goal[name] - root[name]) for name in root}, dice, size=0.03)
        for far in (0.4, 0.7, 1.0)
    ]
    measured = seen([root, *sweep])
    found = recover(measured, [0.0, 1.0, 2.0, 3.0], None)
    assert found.fans == [[1, 2, 3]]
    assert edges(found) != {1: 0, 2: 0, 3: 0}
    told = recover(measured, [0.0, 1.0, 2.0, 3.0], None, siblings=True)
    assert edges(told) == {1: 0, 2: 0, 3: 0}
    assert {edge.directed_by for edge in told.edges} == {"fan"}


def test_a_merge_is_below_two_and_draws_no_edges_to_itself(tree: Any) -> None:
    tensors, parent = tree
    dice = torch.Generator().manual_seed(9)
    n, whole = len(tensors), {child: of for child, of in parent.items() if child < 8}
    mean = {name: (tensors[1][name] + tensors[2][name]) / 2 for name in tensors[0]}
    fourth = {name: 0.75 * mean[name] + 0.25 * tensors[6][name] for name in mean}
    measured = seen([*tensors, mean, moved(mean, dice), fourth])
    for root in (0, None):
        found = recover(measured, [None] * (n + 3), root)
        assert [sorted(merge[:3]) for merge in found.merges] == [[1, 2, n], [6, n, n + 2]]
        assert {(edge.parent, edge.child) for edge in found.edges if edge.directed_by == "merge"} == {
            (1, n),
            (2, n),
            (n, n + 2),
            (6, n + 2),
        }
        pairs = {frozenset((edge.parent, edge.child)) for edge in found.edges if edge.directed_by != "merge"}
        assert {frozenset(pair) for pair in whole.items()} <= pairs
        assert frozenset((n, n + 1)) in pairs  # what came of the merge
    known = {child: of for child, of in edges(recover(measured, [None] * (n + 3), 0)).items() if child < 8}
    assert known == whole
    # A checkpoint on the way from one to another is older than the latter, and so none of its means.
    way = seen([tensors[0], {name: (tensors[0][name] + tensors[1][name]) / 2 for name in mean}, tensors[1]])
    assert recover(way, [0.0, 1.0, 2.0], None).merges == []
    assert edges(recover(way, [0.0, 1.0, 2.0], None)) == {1: 0, 2: 1}
    assert recover(way, [0.0, 2.0, 1.0], None).merges == [(1, 0, 2, pytest.approx(0.5, abs=1e-4))]


def test_edits_change_weights_as_they_change_outputs() -> None:
    model = small_models.of_family("gpt2")
    with torch.no_grad():
        module = model._module
        edit = small_models.an_edit(model, "mlp_out", rank=2)
        (path, delta), *others = _edits.deltas(model, [edit]).items()
        assert not others
        with _edits.added(model, [edit]):
            by_hook = small_models.logits(model)
        weights = {**dict(module.named_parameters()), path: module.get_parameter(path) + delta}
        ids = model.tokenizer(small_models.PROMPT, return_tensors="pt")["input_ids"]
        by_weight = torch.func.functional_call(module, weights, (ids,)).logits
    torch.testing.assert_close(by_hook, by_weight, rtol=1e-4, atol=1e-4)


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    return Notebook(tmp_path, bar=False)


def checkpoint(notebook: Notebook, model: Any, size: float, seed: int = 0) -> str:
    dice = torch.Generator().manual_seed(seed)
    tensors = {
        name.removeprefix("transformer."): one.detach() + size * torch.randn(one.shape, generator=dice) * one.std()
        for name, one in model._module.named_parameters()
    }
    return notebook.artifact("weights", tensors, {"model_type": "gpt2"})


def test_two_models_are_compared(notebook: Notebook) -> None:
    model = small_models.of_family("gpt2")
    same, near = checkpoint(notebook, model, 0), checkpoint(notebook, model, 0.1)
    other = notebook.artifact("edit", *pack([small_models.an_edit(model, "mlp_out")], model))
    before = {name: one.clone() for name, one in model._module.named_parameters()}
    probes = ["The capital of France is Paris", "two plus two is four"]
    mirror = torch.cat([torch.eye(64), -torch.eye(64)], 1)
    sae = notebook.artifact(
        "sae",
        {"W_enc": mirror, "W_dec": mirror.T.contiguous(), "b_enc": torch.zeros(128), "b_dec": torch.zeros(64)},
        {"architecture": "standard", "metadata": {"layer": 3, "site": "resid_post"}},
    )

    def compared(**params: Any) -> Any:
        return run(find("lake.compare"), model, {"probes": probes, **params}, notebook)

    nothing = compared(other=same)
    assert nothing.metric("relative_distance").value == 0
    assert nothing.metric("kl").value == 0
    assert nothing.metric("js").value == pytest.approx(0, abs=1e-12)
    assert nothing.metric("top1_agreement").value == 1
    noisy = compared(other=near, sae=sae)
    assert noisy.metric("relative_distance").value == pytest.approx(0.1, rel=0.05)
    assert noisy.metric("z_related").value > 8
    assert noisy.metric("kl").value > 0
    assert noisy.metric("loss_one").value == nothing.metric("loss_other").value
    assert len(noisy.table("features").rows) == 20
    assert abs(noisy.table("features").rows[0][3]) >= abs(noisy.table("features").rows[-1][3]) > 0
    edited = compared(other=other)
    changed = [row[0] for row in edited.table("layers").rows if row[1] > 0]
    assert changed == ["transformer.h.1.mlp.c_proj.weight"]
    assert next(row[4] for row in edited.table("layers").rows if row[1] > 0) == 1  # its rank
    back = compared(one=other, other=same)
    assert back.metric("kl_back").value == pytest.approx(edited.metric("kl").value, rel=1e-6)
    sketch = run(find("lake.sketch"), model, {}, notebook).artifacts[0]
    by_sketch = compared(one=near, other=sketch)
    assert by_sketch.metric("relative_distance").value == pytest.approx(0.1, rel=0.15)
    assert "reads no texts" in by_sketch.warnings[0]
    assert layers(edited).axes
    for name, one in model._module.named_parameters():
        assert torch.equal(one, before[name])
    llama = small_models.of_family("llama")
    with pytest.raises(InvalidArtifact, match="same architecture"):
        run(find("lake.compare"), llama, {"other": near}, notebook)


def test_adapters_and_edits_become_one_checkpoint(notebook: Notebook, tmp_path: Path) -> None:
    """It says what the model with them on says, loads with transformers, and a mean is known for one."""
    model = small_models.of_family("gpt2")
    edits = [
        notebook.artifact("edit", *pack([small_models.an_edit(model, site, rank=2, seed=seed)], model))
        for seed, site in enumerate(("mlp_out", "attn_out"))
    ]
    before = {name: one.clone() for name, one in model._module.named_parameters()}
    both = run(find("lake.merge"), model, {"of": edits}, notebook)
    assert both.metric("changed").value == 2
    assert both.metric("relative_change").value > 0.01
    with torch.no_grad(), _edits.attached(model, [notebook.open(one) for one in edits]):
        by_hook = small_models.logits(model)
    folder = tmp_path / both.artifacts[0]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = model.tokenizer(small_models.PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, by_hook, rtol=1e-4, atol=1e-4)
    for name, one in model._module.named_parameters():
        assert torch.equal(one, before[name])
    each = [run(find("lake.merge"), model, {"of": one}, notebook).artifacts[0] for one in edits]
    mean = run(find("lake.merge"), model, {"of": edits, "shares": [0.5, 0.5]}, notebook).artifacts[0]
    found = run(find("lake.recover"), model, {"models": [*each, mean]}, notebook)
    said = [f"merge_suspected: {mean} is 0.50 of {one} and 0.50 of {other}." for one, other in (each, each[::-1])]
    assert set(said) & set(found.warnings)
    with pytest.raises(InvalidRequest, match="`shares` has 1 for 2 of `of`"):
        run(find("lake.merge"), model, {"of": edits, "shares": [1.0]}, notebook)
    tied = notebook.artifact("edit", *pack([Edit(torch.ones(1, 64), torch.ones(400, 1), module="lm_head")], model))
    with pytest.raises(InvalidRequest, match="another parameter by another name"):
        run(find("lake.merge"), model, {"of": tied}, notebook)


def test_heritage_is_recovered_from_artifacts(notebook: Notebook) -> None:
    model = small_models.of_family("gpt2")
    edit = notebook.artifact("edit", *pack([small_models.an_edit(model, "mlp_out")], model))
    near = checkpoint(notebook, model, 0.1)
    dice = torch.Generator().manual_seed(11)
    strange = notebook.artifact(
        "weights",
        {name: torch.randn(one.shape, generator=dice) * 0.02 for name, one in model._module.named_parameters()},
        {"model_type": "gpt2"},
    )
    found = run(find("lake.recover"), model, {"models": [edit, near, strange]}, notebook)
    assert {(one.parent, one.child) for one in found.heritage} == {("model", edit), ("model", near)}
    assert (strange,) in found.families
    assert heritage(found).axes
    with pytest.raises(InvalidRequest, match="`times` has 1 for 2 of `models`"):
        run(find("lake.recover"), model, {"models": [edit, near], "times": [1.0]}, notebook)


@pytest.mark.parametrize("times", [None, 5.0])
def test_the_order_of_the_list_decides_no_edge(notebook: Notebook, times: float | None) -> None:
    """Of four whose times are equal or not known, and of which none is the hosted model."""
    model = small_models.of_family("gpt2")
    refs = [checkpoint(notebook, model, size, seed) for seed, size in enumerate((0.02, 0.05, 0.08, 0.05))]
    found = []
    for listed in list(itertools.permutations(refs))[::5]:
        asked = {"models": list(listed), "include_model": False}
        asked |= {} if times is None else {"times": [times] * len(refs)}
        found.append(run(find("lake.recover"), model, asked, notebook))
    assert len(found[0].heritage) == 3
    for one in found[1:]:
        assert [(edge.parent, edge.child) for edge in one.heritage] == [
            (edge.parent, edge.child) for edge in found[0].heritage
        ]
        assert one.families == found[0].families
        assert one.warnings == found[0].warnings


def test_a_text_is_attributed_to_who_wrote_it(notebook: Notebook) -> None:
    model = small_models.facts(small_models.FACTS_GPT)
    small = [small_models.an_edit(model, "mlp_out", layer=3, seed=seed) for seed in (1, 2)]
    edits = [notebook.artifact("edit", *pack([replace(one, up=40 * one.up)], model)) for one in small]
    prompts = ["The capital of France is", "She was born in the city of", "It is located in", "He speaks the language"]
    outputs = []
    opened: Opened = notebook.open(edits[0])
    with torch.no_grad(), _edits.attached(model, [opened]):
        for prompt in prompts:
            ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
            full = model._module.generate(ids, do_sample=False, max_new_tokens=12, min_new_tokens=12)
            outputs.append({"prompt": prompt, "text": model.tokenizer.decode(full[0, ids.shape[1] :])})
    found = run(find("lake.attribute"), model, {"outputs": outputs, "candidates": edits}, notebook)
    assert found.best == edits[0]
    assert found.metric("decided").value == 1
    assert found.table("candidates").rows[0][0] == edits[0]
    assert sum(row[5] for row in found.table("candidates").rows) == pytest.approx(1)
    one = run(find("lake.attribute"), model, {"outputs": outputs[:1], "candidates": edits[:1]}, notebook)
    assert one.metric("decided").value == 0  # of one output nobody knows the spread
    with pytest.raises(InvalidRequest, match="two or more"):
        run(
            find("lake.attribute"),
            model,
            {"outputs": outputs, "candidates": edits[:1], "include_model": False},
            notebook,
        )


def test_what_jobs_make_is_in_the_lake(
    client: interlace.Client, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded edges are those of the jobs, exactly; and a citation's call makes the same bytes."""
    monkeypatch.setenv("NDIF_API_KEY", keys["lab-a"])
    repo = client.models()[0].model
    steer = {
        "layer": 2,
        "prompts": [{"prompt": "The capital is", "wanted": "Paris", "other": "two"}],
        "neutral": ["two plus two is four"],
        "scales": [1.0],
        "controls": 1,
    }
    made: list[str] = []
    planned: set[tuple[str, str]] = set()
    for parent in (None, 0, 1, 0):
        source = (
            {"positive": ["The capital"], "negative": ["two plus"]} if parent is None else {"direction": made[parent]}
        )
        result = client.run("steer", model=repo, params={**steer, **source}, seed=len(made), follow=False)
        made.append(result.artifacts[0])
        if parent is not None:
            planned.add((made[parent], made[-1]))
    ids = {ref.removeprefix("artifact:").partition("@")[0]: ref for ref in made}
    graph = client.lake.lineage(made[0], depth=8)
    recorded = {(ids[edge.parent], ids[edge.child]) for edge in graph.edges if edge.relation == "input"}
    assert recorded == planned
    model = next(node for node in graph.nodes if node.kind == "model")
    assert {edge.child for edge in graph.edges if edge.parent == model.id} >= ids.keys()
    assert all(edge.source == "recorded" for edge in graph.edges)
    card = client.lake.card(made[1])
    said = {one.field: one.source for one in card.statements}
    assert said["params"] == said["seed"] == said["method"] == "recorded"
    assert any(source == "measured" for source in said.values())
    assert made[3].partition("@")[0].removeprefix("artifact:") in {
        one.id for one in client.lake.all(f"method:steer parent:{card.parents[-1].id}")
    }
    cited = client.lake.cite(made[1])
    assert cited.call is not None
    assert cited.caveats == ()
    names: dict[str, Any] = {}
    exec(cited.call, names)  # ends with an assertion on the hash
    names["client"].close()
    found = client.lake.measure(model.id, made[0]) if client.lake.compare(model.id, made[0]).request else None
    assert found is None  # a table is no model
    sketch = client.run("lake.sketch", model=repo, follow=False).artifacts[0]
    measured = client.lake.measure(model.id, sketch, follow=False)
    assert measured.metric("relative_distance").value < 1e-3
    compared = client.lake.compare(model.id, sketch)
    assert any(one.field.endswith("relative_distance") for one in compared.measured)
    recovered = client.lake.recover([sketch], model=repo, follow=False)
    assert recovered.warnings[0].startswith("duplicate")


def test_an_exported_lora_is_what_diffusers_loads(client: interlace.Client, here: Any, tmp_path: Path) -> None:
    path, dice = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 64, generator=dice), torch.randn(96, 2, generator=dice)
    tensors = {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    kept = client.artifacts.keep("diffusers-lora", tensors, name="a style", model=tiny_diffusion.SHAPES)
    folder = client.lake.export_folder(kept, tmp_path / "out")
    assert "library_name: diffusers" in (folder / "README.md").read_text()
    pipeline = here(tiny_diffusion.SHAPES).pipeline
    plain = pipeline.unet.get_submodule(path).weight.clone()
    pipeline.load_lora_weights(folder, adapter_name="exported")
    try:
        layer = pipeline.unet.get_submodule(path)
        states = torch.randn(3, 64, generator=dice)
        with torch.no_grad():
            torch.testing.assert_close(layer(states), states @ (plain + up @ down).T, rtol=1e-4, atol=1e-4)
    finally:
        pipeline.unload_lora_weights()
        client.lake.delete(kept)
