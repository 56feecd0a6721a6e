"""A splice by itself changes nothing, and its gradients are those that they are said to be, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import circuits
import pytest
import small_models
import torch
from torch import Tensor

from interlace.methods.base import Report
from interlace.methods.notebook import Notebook
from interlace.methods.sae import formats
from interlace.methods.shared.capture import Change, Patch, altered, captured, last_logits, patched
from interlace.methods.shared.circuits.attribution import (
    ERROR,
    Attributor,
    Batch,
    Endpoints,
    Node,
    Runs,
    batches,
    shares,
)
from interlace.methods.shared.circuits.examples import Example
from interlace.methods.shared.circuits.metrics import LogitMetric, Measure, ProbeMetric, measure
from interlace.methods.shared.circuits.splice import Splice, Values, ablated
from interlace.methods.shared.sites import Sites, evaluating
from interlace.protocol.errors import InvalidRequest

#: Of each family, in the order of a forward.
PLACES: dict[str, list[tuple[str, int | None]]] = {
    "gpt2": [("embed", None), ("attn_out", 1), ("mlp_out", 1), ("resid_post", 1), ("resid_post", 2)],
    "llama": [("embed", None), ("head:1", 1), ("mlp_act", 1), ("resid_post", 1)],
    "neox": [("embed", None), ("attn_out", 0), ("mlp_out", 0), ("resid_post", 0)],
    "mamba": [("embed", None), ("mixer_out", 1), ("resid_post", 2)],
}


def splice_of(model: Any, family: str, architecture: str = "standard", skip: int = 0) -> Splice:
    """Given in the wrong order."""
    sites = Sites.of(model)
    with torch.no_grad(), captured({one: sites.place(*one) for one in PLACES[family]}) as states:
        last_logits(sites.module, torch.arange(1, 4)[None])
    coders = []
    for number, (site, layer) in enumerate(PLACES[family]):
        width = states[site, layer].shape[-1]
        made = circuits.dictionary(width, 2 * width, number, architecture, skip_first=skip)
        coders.append((made, site, layer, ""))
    return Splice.of(model, coders[::-1])


def parts(family: str, tmp_path: Path, **more: Any) -> tuple[Splice, Attributor, Batch]:
    model = small_models.of_family(family)
    splice = splice_of(model, family, **more)
    if family == "mamba":
        prompts = ("France is located on the continent of", "Spain is located on the continent of")
        pairs = [{"clean": prompts[0], "patch": prompts[1], "answer": "Europe", "patch_answer": "Asia"}]
    else:
        pairs = circuits.PAIRS[:1]
    examples = [Example.model_validate(one) for one in pairs]
    metric = measure("logit_diff", splice.sites, model.tokenizer, examples, Notebook(tmp_path, bar=False), None)
    (batch,) = batches(model.tokenizer, examples, 8)
    return splice, Attributor(splice, metric), batch


def plain_gradients(splice: Splice, metric: Measure, batch: Batch) -> dict[str, Tensor]:
    """dm/dx at each place, of the model without a splice: x + 0, where 0 is a leaf."""
    nothing: dict[str, Tensor] = {}

    def add(name: str) -> Change:
        def change(state: Tensor) -> Tensor:
            nothing[name] = torch.zeros_like(state).requires_grad_(True)
            return state + nothing[name]

        return change

    with torch.enable_grad(), altered([(one.place, add(one.name)) for one in splice.coders]):
        total = metric(batch.clean, batch.numbers).sum()
        return dict(zip(nothing, torch.autograd.grad(total, list(nothing.values())), strict=True))


def close(one: Tensor, other: Tensor, within: float = 1e-5) -> bool:
    return float((one.detach() - other).abs().max()) <= within * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("family", PLACES)
def test_the_identities_of_a_splice(family: str, tmp_path: Path) -> None:
    splice, attributor, batch = parts(family, tmp_path)
    names = [site if layer is None else f"{site}.{layer}" for site, layer in PLACES[family]]
    assert splice.names == names  # as a forward comes by them
    module, hooks = splice.sites.module, circuits.hooks(splice.sites.module)
    with evaluating(module):
        with torch.no_grad():
            plain = last_logits(module, batch.clean)
            with splice.watched() as seen:
                assert torch.equal(last_logits(module, batch.clean), plain)
            with captured({one.name: one.place for one in splice.coders}) as states:
                last_logits(module, batch.clean)
            whole = [splice[name].dictionary.decode(seen[name].features) + seen[name].error for name in names]
            for name, one in zip(names, whole, strict=True):
                assert close(one, states[name].float())
                assert 0.2 < float((seen[name].features > 0).float().mean()) < 0.8
                assert float(seen[name].error.norm()) > 0.05
            same = {name: lambda old: Values(old.features.clone(), old.error.clone()) for name in names}
            with splice.intervened(same):
                assert close(last_logits(module, batch.clean), plain)
            # A value that is set runs on: without its features, and without its error, the model says something else.
            with splice.intervened({names[-1]: ablated(range(splice[names[-1]].d_sae))}):
                assert not close(last_logits(module, batch.clean), plain, 1e-3)
        with torch.enable_grad(), splice.opened():
            assert close(last_logits(module, batch.clean), plain)
        with torch.enable_grad(), splice.cut():
            assert close(last_logits(module, batch.clean), plain)

        expected = plain_gradients(splice, attributor.measure, batch)
        found = attributor.gradients(batch)
        for name in names:
            # Places before see the model's own gradient, though others are spliced behind them.
            assert close(found[name].error, expected[name])
            projected = expected[name] @ splice[name].directions.T
            assert close(found[name].features, projected)
            assert float(projected.abs().max()) > 0
        with torch.enable_grad(), splice.cut() as cut:
            total = attributor.measure(batch.clean, batch.numbers).sum()
            first = torch.autograd.grad(total, cut.leaves[names[0]].error, allow_unused=True)[0]
        # And where nothing passes through, they do not.
        assert first is None or not close(first, expected[names[0]], 1e-3)
    assert circuits.hooks(module) == hooks


@pytest.mark.parametrize("architecture", ["gated", "topk", "jumprelu"])
def test_every_architecture_keeps_them(architecture: str, tmp_path: Path) -> None:
    splice, attributor, batch = parts("gpt2", tmp_path, architecture=architecture, skip=1)
    with evaluating(splice.sites.module):
        expected, found = plain_gradients(splice, attributor.measure, batch), attributor.gradients(batch)
        runs = attributor.runs(batch)
    for name in splice.names:
        assert close(found[name].features, expected[name] @ splice[name].directions.T)
        assert float(runs.clean[name].features[:, 1:].abs().max()) > 0
        assert not runs.clean[name].features[:, 0].any()  # what it was not trained on is all error


def probe(attributor: Attributor, site: str, layer: int) -> Attributor:
    """With a head that is linear in the states of a place, their mean over tokens."""
    metric = attributor.measure
    assert isinstance(metric, LogitMetric)
    sites = metric.sites
    place = sites.place(site, layer)
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    head = ProbeMetric(sites, metric.report, place, weight, weight[:, 0], True, torch.tensor([2]), torch.tensor([0]))
    return Attributor(attributor.splice, head)


def exact(attributor: Attributor, batch: Batch, runs: Runs, name: str) -> tuple[Tensor, Tensor]:
    """[tokens, d_sae], [tokens]: of the first row, every node by a patch of the whole state with plain hooks."""
    one = attributor.splice[name]
    delta = runs.delta(name)
    with torch.no_grad(), captured({"": one.place}) as states:
        last_logits(attributor.splice.sites.module, batch.clean)
    state = states[""][0]
    features = torch.zeros_like(delta.features[0])
    moves = [(int(at), int(number), delta.features[0, at, number]) for at, number in delta.features[0].nonzero()]
    for at, number, by in moves:
        features[at, number] = _with(attributor, batch, one.place, at, state[at] + by * one.directions[number])
    error = torch.stack(
        [_with(attributor, batch, one.place, at, state[at] + delta.error[0, at]) for at in range(len(state))]
    )
    return torch.where(delta.features[0] != 0, features - runs.m_clean, 0.0), error - runs.m_clean


def _with(attributor: Attributor, batch: Batch, place: Any, at: int, state: Tensor) -> Tensor:
    patch = Patch(place, torch.tensor([0]), torch.tensor([at]), state[None])
    with torch.no_grad(), patched([patch]):
        return attributor.measure(batch.clean[:1], batch.numbers[:1])[0]


def test_exact_effects_are_those_of_patched_states(tmp_path: Path) -> None:
    _, attributor, batch = parts("gpt2", tmp_path)
    name = "resid_post.1"
    with evaluating(attributor.splice.sites.module):
        runs = attributor.runs(batch)
        features, error = exact(attributor, batch, runs, name)
        some = features.abs().flatten().topk(12).indices.tolist()
        nodes = [Node(index // features.shape[1], index % features.shape[1]) for index in some]
        tokens = [Node(at, ERROR) for at in range(len(error))]
        found = attributor.exact(batch, runs, name, [*nodes, *tokens], 5)[:, 0]
        wanted = torch.cat([torch.stack([features[node] for node in nodes]), error]).double()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
        assert float(found.abs().max()) > 1e-2
        # Prompts begin alike, and the row where nothing differs is not run.
        before = attributor.measure.report.cost["forwards"]  # type: ignore[attr-defined]
        still = attributor.exact(batch, runs, name, [Node(0, nodes[0].feature), Node(0, ERROR)], 5)
        assert not still.any()
        assert attributor.measure.report.cost["forwards"] == before  # type: ignore[attr-defined]


def test_gradients_of_a_linear_head_are_exact_with_any_points(tmp_path: Path) -> None:
    _, attributor, batch = parts("gpt2", tmp_path)
    name = "resid_post.1"
    attributor = probe(attributor, "resid_post", 1)
    with evaluating(attributor.splice.sites.module):
        runs = attributor.runs(batch)
        features, error = exact(attributor, batch, runs, name)
        estimates = [attributor.atp(batch, runs)[name]]
        estimates += [attributor.ig(batch, runs, 3, way, name) for way in ("clean_first", "patch_first", "midpoint")]
    for one in estimates:
        assert close(one.features[0], features)
        assert close(one.error[0], error)
    assert float(features.abs().max()) > 0.01


def test_integrated_gradients_sum_to_what_patching_the_place_does(tmp_path: Path) -> None:
    _, attributor, batch = parts("gpt2", tmp_path)
    with evaluating(attributor.splice.sites.module):
        for name in ("embed", "resid_post.2"):
            gaps = _gaps(attributor, batch, name, {"clean_first": (8, 40), "patch_first": (8, 40), "midpoint": (20,)})
            for way in ("clean_first", "patch_first"):
                assert gaps[way, 40] <= 0.05
                assert gaps[way, 40] < gaps[way, 8]
            assert gaps["midpoint", 20] <= 0.005
        # The way to nothing at all leads through where a norm bends most.
        ablation = Batch(batch.numbers, batch.clean, None)
        gaps = _gaps(attributor, ablation, "resid_post.2", {"midpoint": (8, 40)})
        assert gaps["midpoint", 40] < gaps["midpoint", 8]


def test_on_the_way_of_one_node_alone_integrated_gradients_are_exact(tmp_path: Path) -> None:
    """So what may keep them from single patches is that all nodes of a place go the way together, and nothing else."""
    _, attributor, batch = parts("gpt2", tmp_path)
    name = "resid_post.1"
    with evaluating(attributor.splice.sites.module):
        runs = attributor.runs(batch)
        clean, patch = runs.clean[name], runs.patch[name]
        together = attributor.ig(batch, runs, 40, "midpoint", name).features[0]
        for index in together.abs().flatten().topk(3).indices.tolist():
            at, number = divmod(index, together.shape[1])
            features = clean.features.clone()
            features[0, at, number] = patch.features[0, at, number]
            alone = replace(runs, patch={**runs.patch, name: Values(features, clean.error)})
            estimate = float(attributor.ig(batch, alone, 40, "midpoint", name).features.sum())
            exactly = float(attributor.exact(batch, runs, name, [Node(at, number)], 1))
            assert estimate == pytest.approx(exactly, rel=0.01)


@dataclass(frozen=True)
class _AtMost:
    """What another says, up to a limit."""

    measure: Measure
    most: float

    @property
    def report(self) -> Report:
        return self.measure.report

    def __call__(self, ids: Tensor, numbers: Sequence[int]) -> Tensor:
        return self.measure(ids, numbers).clamp_max(self.most)


def test_nodes_that_stand_in_for_each_other(tmp_path: Path) -> None:
    """Either of two is enough: taking out one does nothing, both do, and integrated gradients share that out."""
    _, attributor, batch = parts("gpt2", tmp_path)
    name, attributor = "resid_post.1", probe(attributor, "resid_post", 1)
    with evaluating(attributor.splice.sites.module):
        runs = attributor.runs(batch)
        linear = attributor.atp(batch, replace(runs, patch=_nothing(runs)))[name].features[0]
        nodes = [Node(*divmod(one, linear.shape[1])) for one in (-linear).flatten().topk(2).indices.tolist()]
        one, other = (-float(linear[node]) for node in nodes)
        attributor = replace(attributor, measure=_AtMost(attributor.measure, float(runs.m_clean) - one))
        runs = attributor.runs(batch)
        features = runs.clean[name].features.clone()
        for node in nodes:
            features[(0, *node)] = 0.0
        runs = replace(runs, patch={**runs.patch, name: Values(features, runs.clean[name].error)})
        assert float(attributor.exact(batch, runs, name, nodes, 2).abs().max()) < 1e-4
        whole = attributor.ig(batch, runs, 400, "midpoint", name).features[0]
        assert float(whole.sum()) == pytest.approx(-other, rel=0.02)
        assert all(float(whole[node]) < -0.2 * other for node in nodes)
        near = attributor.ig(batch, runs, 10, "midpoint", name, reach=0.25).features
        assert not near.any(), "as each by itself"


def _nothing(runs: Runs) -> dict[str, Values]:
    return {name: Values(*(torch.zeros_like(one) for one in own)) for name, own in runs.clean.items()}


def _gaps(
    attributor: Attributor, batch: Batch, name: str, points: dict[Endpoints, tuple[int, ...]]
) -> dict[tuple[str, int], float]:
    """How far the sum of all effects at a place is from that of patching all of it, of the latter."""
    runs = attributor.runs(batch)
    with torch.no_grad(), attributor.splice.intervened({name: lambda _: runs.patch[name]}):
        whole = float(attributor.measure(batch.clean, batch.numbers) - runs.m_clean)
    assert abs(whole) > 0.05
    found = {}
    for way, counts in points.items():
        for steps in counts:
            effects = attributor.ig(batch, runs, steps, way, name)
            found[way, steps] = abs(float(effects.features.sum() + effects.error.sum()) / whole - 1)
    return found


def test_the_points_of_the_paper_and_of_its_code() -> None:
    assert shares(4, "clean_first") == [0, 0.25, 0.5, 0.75]
    assert shares(4, "patch_first") == [1, 0.75, 0.5, 0.25]
    assert shares(2, "midpoint") == [0.25, 0.75]


def test_what_cannot_be_spliced_is_refused() -> None:
    model = small_models.of_family("gpt2")
    made = circuits.dictionary(64, 8, 0)
    for coders, said in (
        ([(made, "resid_post", 1, "a"), (made, None, 1, "b")], r"Two dictionaries are for resid_post\.1"),
        ([(made, None, None, "artifact:x")], "artifact:x does not say what layer"),
        ([(made, "mlp_act", 1, "it")], "mlp_act.1 of this model has 256 dimensions; it is of 64"),
        ([(made, "resid_post", 9, "")], "The layer is 9"),
        ([], "no dictionary"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            Splice.of(model, coders)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="behind a gate"):
        Splice.of(small_models.of_family("mamba"), [(made, "ssm_out", 1, "")])
    with pytest.raises(KeyError), Splice.of(model, [(made, None, 1, "")]).watched(["resid_post.2"]):
        pass


def test_a_public_dictionary_says_its_place_as_its_library_does(tmp_path: Path) -> None:
    model = small_models.of_family("gpt2")
    names = {"blocks.2.hook_mlp_out": "mlp_out.2", "blocks.2.hook_resid_pre": "resid_post.1", "hook_embed": "embed"}
    coders = [(circuits.dictionary(64, 8, 0, hook_name=name), None, None, "") for name in names]
    assert set(Splice.of(model, coders).names) == set(names.values())
    with pytest.raises(InvalidRequest, match="does not say what layer"):
        Splice.of(model, [(circuits.dictionary(64, 8, 0, hook_name="blocks.2.attn.hook_z"), None, None, "")])
    # One of `dictionary_learning`, which does not say its site in our words.
    formats.to_dictionary_learning(circuits.dictionary(64, 8, 3), tmp_path / "theirs")
    read = formats.from_dictionary_learning(tmp_path / "theirs", layer=1, site="attn_out")
    (one,) = Splice.of(model, [(read, None, None, "")]).coders
    assert one.name == "attn_out.1"
    torch.testing.assert_close(one.dictionary.weights["W_dec"], circuits.dictionary(64, 8, 3).weights["W_dec"])


def test_examples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = small_models.of_family("gpt2")
    one = Example(clean="Paris is", patch="Rome is", answer="Paris")
    for examples, said in (
        ([one, Example(clean="Paris is", answer="Paris")], r"data\[1\].*has no `patch`"),
        ([Example(clean="Paris is the capital", patch="Rome", answer="x")], r"data\[0\].*token by token"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            list(batches(model.tokenizer, examples, 4))
    with pytest.raises(InvalidRequest, match="needs `patch_answer`"):
        measure("logit_diff", Sites.of(model), model.tokenizer, [one], Notebook(tmp_path, bar=False), None)
    with pytest.raises(InvalidRequest, match="needs `head`"):
        measure("probe_logit", Sites.of(model), model.tokenizer, [one], Notebook(tmp_path, bar=False), None)
