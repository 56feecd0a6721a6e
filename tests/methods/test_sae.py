"""Sparse autoencoders: what they learn, what is measured of them, and how a trace reads and edits them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import interlace
from interlace.methods import find
from interlace.methods.base import Checkpoint, ModelFacts, Opened
from interlace.methods.notebook import Notebook, run
from interlace.methods.sae import formats, losses
from interlace.methods.sae.annealing import Annealing, schedule
from interlace.methods.sae.coder import Coder, geometric_median
from interlace.methods.sae.harvest import Harvester
from interlace.methods.sae.spec import PAnneal, TrainParams
from interlace.methods.shared.corpus import Corpus
from interlace.methods.shared.features.dictionary import NAMES, Dictionary
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

TRAIN, EVAL = find("sae.train"), find("sae.eval")
ANNEALED = {"type": "p_anneal", "weight": 0.1, "anneal_start": 80}
#: One of each kind, with a penalty that serves the known dictionary below.
KINDS: dict[str, dict[str, Any]] = {
    "standard": {"arch": "standard", "sparsity": {"type": "l1", "weight": 0.15}},
    "standard, annealed": {"arch": "standard", "sparsity": ANNEALED},
    "standard, the library's": {"arch": "standard", "variant": "library", "sparsity": {"type": "l1", "weight": 0.15}},
    "gated": {"arch": "gated", "sparsity": {"type": "l1", "weight": 1.0}},
    "gated, annealed": {"arch": "gated", "sparsity": {**ANNEALED, "weight": 1.2}},
    "topk": {"arch": "topk", "sparsity": {"type": "k", "k": 3, "dead_after": 5000}},
    "batchtopk": {"arch": "batchtopk", "sparsity": {"type": "k", "k": 3, "threshold_start": 100}},
    "jumprelu": {"arch": "jumprelu", "sparsity": {"type": "l0", "weight": 0.15, "bandwidth": 0.05, "threshold": 0.05}},
    "jumprelu, the library's": {
        "arch": "jumprelu",
        "variant": "library",
        "sparsity": {"type": "l0", "weight": 0.1, "target": 4.0, "bandwidth": 0.05, "threshold": 0.05},
    },
}
TEXTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Two plus two is four, and three plus three is six.",
    "The capital of France is Paris",
    "John gave a drink to Mary.",
] * 3


@pytest.fixture
def model() -> Any:
    return small_models.of_family("gpt2")


def params_of(kind: str, steps: int = 300, **more: Any) -> TrainParams:
    given = {"data": ["-"], "layer": 0, "steps": steps, "batch": 128, "d_sae": 48, "lr": 1e-2, "lr_warmup": 20}
    return TrainParams.model_validate({**given, "sparsity_warmup": 40, **KINDS[kind], **more})


def known(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of a few of 24 directions in 16 dimensions, and which: [n, 16], [n, 24]."""
    directions = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(n, 24, generator=generator) < 0.08
    return (on * (0.5 + torch.rand(n, 24, generator=generator))) @ directions, on


def coverage(dictionary: Dictionary, x: torch.Tensor, truth: torch.Tensor) -> float:
    best = torch.zeros(truth.shape[1])
    features = dictionary.encode(x)
    for level in (0.0, 0.2, 0.4):
        on = (features > level * features.amax(0)).float()
        f1 = 2 * on.T @ truth.float() / (on.sum(0)[:, None] + truth.sum(0)).clamp_min(1)
        best = torch.maximum(best, f1.amax(0))
    return float(best.mean())


def explained(dictionary: Dictionary, x: torch.Tensor) -> float:
    rebuilt = dictionary.decode(dictionary.encode(x))
    return 1 - float((x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_a_known_dictionary_better_than_one_that_was_not_trained(kind: str) -> None:
    params = params_of(kind)
    coder = Coder(params, 16, seed=1)
    x, truth = known(2000, 1)
    before = coder.dictionary(1.0, x[:128], {})
    pool, _ = known(8192, 2)
    order = torch.Generator().manual_seed(3)
    for step in range(params.steps):
        coder.step(step, pool[torch.randint(len(pool), (params.batch,), generator=order)])
    after = coder.dictionary(1.0, x[:128], {})
    assert coverage(after, x, truth) > max(0.62, coverage(before, x, truth) + 0.15)
    assert explained(after, x) > max(0.6, explained(before, x) + 0.1)
    l0 = float((after.encode(x) > 0).sum(-1).float().mean())
    assert l0 < 20
    torch.testing.assert_close(after.weights["W_dec"].norm(dim=-1), torch.ones(48))


# --- losses, by hand


def weights_of(arch: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (3, 5), "W_dec": (5, 3), "b_dec": (3,)}
    weights = {name: torch.randn(*shapes.get(name, (5,)), generator=generator) for name in sorted(NAMES[arch])}
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    return {name: one.requires_grad_() for name, one in weights.items()}


X = torch.randn(7, 3, generator=torch.Generator().manual_seed(6))


def rows_of(w: Mapping[str, torch.Tensor], *, centred: bool = True) -> list[list[float]]:
    """W_enc (x - b_dec), number by number."""
    shift = w["b_dec"].tolist() if centred else [0.0] * 3
    return [
        [sum((x[d] - shift[d]) * float(w["W_enc"][d, f].detach()) for d in range(3)) for f in range(5)]
        for x in X.tolist()
    ]


def rebuilt_of(w: Mapping[str, torch.Tensor], features: list[list[float]]) -> list[list[float]]:
    return [
        [float(w["b_dec"][d]) + sum(f[i] * float(w["W_dec"][i, d]) for i in range(5)) for d in range(3)]
        for f in features
    ]


def squares(rows: list[list[float]]) -> list[float]:
    return [sum((a - b) ** 2 for a, b in zip(x, row, strict=True)) for x, row in zip(X.tolist(), rows, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_standard_loss_is_equation_8_or_the_librarys_square() -> None:
    w = weights_of("standard")
    features = [[max(a + float(b), 0.0) for a, b in zip(row, w["b_enc"], strict=True)] for row in rows_of(w)]
    apart = squares(rebuilt_of(w, features))
    penalty = mean([sum(f**0.5 for f in row if f) for row in features])
    found = losses.standard(w, X, 0.5, 0.3, squared=False)
    assert float(found.total) == pytest.approx(mean([math.sqrt(a) for a in apart]) + 0.3 * penalty, rel=1e-5)
    found = losses.standard(w, X, 0.5, 0.3, squared=True)
    assert float(found.total) == pytest.approx(mean(apart) + 0.3 * penalty, rel=1e-5)
    found.total.backward()
    assert all(bool(one.grad.isfinite().all()) for one in w.values() if one.grad is not None)
    assert any(0.0 in row for row in features)  # there was a 0 whose power has no finite slope


def test_the_gated_loss_is_equation_8_of_its_paper() -> None:
    w = weights_of("gated")
    inner = rows_of(w)
    gate = [[a + float(b) for a, b in zip(row, w["b_gate"], strict=True)] for row in inner]
    scale = [math.exp(float(r)) for r in w["r_mag"]]
    size = [[max(a * s + float(b), 0.0) for a, s, b in zip(row, scale, w["b_mag"], strict=True)] for row in inner]
    features = [[s if g > 0 else 0.0 for s, g in zip(a, b, strict=True)] for a, b in zip(size, gate, strict=True)]
    opened = [[max(g, 0.0) for g in row] for row in gate]
    error, auxiliary = mean(squares(rebuilt_of(w, features))), mean(squares(rebuilt_of(w, opened)))
    found = losses.gated(w, X, 1.0, 0.2)
    assert float(found.total) == pytest.approx(error + 0.2 * mean([sum(row) for row in opened]) + auxiliary, rel=1e-5)
    found.total.backward()
    alone = weights_of("gated")
    losses.gated(alone, X, 1.0, 0.2).error.backward()
    # The frozen decoder learns nothing from the gate's reconstruction.
    torch.testing.assert_close(w["W_dec"].grad, alone["W_dec"].grad)


@pytest.mark.parametrize("whole_batch", [False, True])
def test_top_k_keeps_the_largest_and_the_dead_explain_the_error(whole_batch: bool) -> None:
    w = weights_of("topk")
    inner = [[max(a + float(b), 0.0) for a, b in zip(row, w["b_enc"], strict=True)] for row in rows_of(w)]
    least = sorted((f for row in inner for f in row), reverse=True)[2 * 7 - 1]
    features = [[f if f >= (least if whole_batch else sorted(row)[-2]) else 0.0 for f in row] for row in inner]
    error = mean(squares(rebuilt_of(w, features)))
    nobody = torch.zeros(5, dtype=torch.bool)
    found = losses.top_k(w, X, 2, whole_batch=whole_batch, dead=nobody, aux_weight=0.5)
    assert float(found.total) == pytest.approx(error, rel=1e-5)
    assert found.features.tolist() == pytest.approx([pytest.approx(row, abs=1e-5) for row in features])
    dead = torch.tensor([True, False, False, False, True])
    apart = X - found.reconstruction.detach()
    only = torch.tensor([[max(row[0], 0.0), 0, 0, 0, max(row[4], 0.0)] for row in inner])
    only = torch.where(only == only.amax(-1, keepdim=True), only, 0.0)  # 3 dimensions: one of the dead at a time
    left = (apart - only @ w["W_dec"]).pow(2).sum(-1).mean() / (apart - apart.mean(0)).pow(2).sum(-1).mean()
    found = losses.top_k(w, X, 2, whole_batch=whole_batch, dead=dead, aux_weight=0.5)
    assert float(found.penalty) == pytest.approx(float(left), rel=1e-5)
    assert float(found.total) == pytest.approx(error + 0.5 * float(left), rel=1e-5)


@pytest.mark.parametrize("target", [None, 2.0])
def test_jump_relu_is_equation_9_and_its_thresholds_learn_by_11_and_12(target: float | None) -> None:
    w, bandwidth, weight = weights_of("jumprelu"), 0.8, 0.3
    rows = rows_of(w, centred=False)
    inner = [[max(a + float(b), 0.0) for a, b in zip(row, w["b_enc"], strict=True)] for row in rows]
    threshold = w["threshold"].tolist()
    features = [[a if a > t else 0.0 for a, t in zip(row, threshold, strict=True)] for row in inner]
    l0 = mean([sum(f > 0 for f in row) for row in features])
    rebuilt = rebuilt_of(w, features)
    penalty = l0 if target is None else (l0 / target - 1) ** 2
    found = losses.jump_relu(w, X, weight, bandwidth, target)
    assert float(found.total) == pytest.approx(mean(squares(rebuilt)) + weight * penalty, rel=1e-5)
    found.total.backward()
    slope = weight if target is None else weight * 2 * (l0 / target - 1) / target
    for i, t in enumerate(threshold):
        by_hand = 0.0
        for x, row, again in zip(X.tolist(), inner, rebuilt, strict=True):
            to_feature = sum(2 * (again[d] - x[d]) * float(w["W_dec"][i, d]) for d in range(3)) / 7
            near = abs(row[i] - t) < bandwidth / 2
            counted = row[i] if target is None or row[i] > t else 0.0
            by_hand -= near * t / bandwidth * to_feature + (abs(counted - t) < bandwidth / 2) / bandwidth * slope / 7
        assert float(w["threshold"].grad[i]) == pytest.approx(by_hand, rel=1e-3, abs=1e-5)


def test_the_geometric_median_is_not_moved_by_one_far_point() -> None:
    x = torch.cat([torch.eye(3), -torch.eye(3), torch.tensor([[1000.0, 0.0, 0.0]])])
    assert float(geometric_median(x).norm()) < 1 < float(x.mean(0).norm())


# --- p-annealing


def test_p_reaches_its_end_in_the_papers_variant_and_not_in_the_librarys() -> None:
    params = PAnneal(anneal_start=100)
    for variant, end, last in (("paper", None, 0.2), ("library", None, 1 - 0.8 * 8 / 9), ("library", 999, 0.2)):
        one = params.model_copy(update={"anneal_end": end})
        annealing = Annealing.begin(one, 1000, variant)
        seen = []
        for step in range(1000):
            seen.append(annealing.p)
            annealing.after(step, 1.0, None if annealing.next_p is None else 1.0)
        assert annealing.p == pytest.approx(last), variant
        assert seen[100] == 1.0
        assert seen == sorted(seen, reverse=True)
    at, values = schedule(params, 1000, "paper")
    assert at == tuple(range(100, 1000, 90))  # each of the ten values for 90 steps, the last too
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.2)
    assert schedule(params, 1000, "library")[0] == tuple(range(100, 1001, 100))


def test_a_change_of_p_does_not_make_the_penalty_jump() -> None:
    annealing = Annealing.begin(PAnneal(weight=0.5, anneal_start=0, updates=2, queue=3), 10, "paper")
    features = [torch.rand(20, 8, generator=torch.Generator().manual_seed(step)) for step in range(10)]
    for step in range(5):
        next_p = annealing.next_p
        annealing.after(
            step,
            float(losses.power(features[step], annealing.p)),
            None if next_p is None else float(losses.power(features[step], next_p)),
        )
    before = 0.5 * sum(float(losses.power(f, 1.0)) for f in features[3:6])
    annealing.after(5, float(losses.power(features[5], 1.0)), float(losses.power(features[5], 0.2)))
    assert annealing.p == pytest.approx(0.2)
    after = annealing.weight * sum(float(losses.power(f, 0.2)) for f in features[3:6])
    assert after == pytest.approx(before, rel=1e-4)
    assert annealing.weight != 0.5


# --- the run


class Lost(Exception):
    pass


class Watched(Notebook):
    """A notebook that keeps a checkpoint, and breaks off or stops at a step."""

    def __init__(self, folder: Path, lost_at: int = -1, stop_at: int = -1, kept: Checkpoint | None = None) -> None:
        super().__init__(folder, seed=3, bar=False)
        self.kept, self._lost_at, self._stop_at, self._done = kept, lost_at, stop_at, 0

    @property
    def stopping(self) -> bool:
        return 0 <= self._stop_at <= self._done

    def checkpoint(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        self._done = step
        self.kept = Checkpoint(
            step, {name: one.clone() for name, one in tensors.items()}, json.loads(json.dumps(state))
        )
        if step == self._lost_at:
            raise Lost

    def resumed(self) -> Checkpoint | None:
        return self.kept


BRIEF = {"data": TEXTS, "layer": 1, "steps": 40, "batch": 16, "buffer": 100, "model_batch": 3, "d_sae": 32, "lr": 1e-3}
SHORT = {**BRIEF, "lr_warmup": 2, "sparsity_warmup": 4}


@pytest.mark.parametrize("kind", ["gated, annealed", "batchtopk"])
def test_a_run_that_lost_its_worker_ends_as_one_that_did_not(kind: str, model: Any, tmp_path: Path) -> None:
    more = {"anneal_start": 5} if "annealed" in kind else {}
    asked = {**SHORT, **KINDS[kind], "normalize": True}
    asked["sparsity"] = {**asked["sparsity"], **more, **({"threshold_start": 7} if kind == "batchtopk" else {})}
    whole = run(TRAIN, model, asked, Watched(tmp_path / "whole"))
    first = Watched(tmp_path / "first", lost_at=23)
    with pytest.raises(Lost):
        run(TRAIN, model, asked, first)
    second = Watched(tmp_path / "second", kept=first.kept)
    again = run(TRAIN, model, asked, second)
    for one, other in ((whole, again),):
        assert one.metrics == other.metrics
        assert one.tables == other.tables
        assert other.epochs > 1
    mine, theirs = (formats.read(result.sae).weights for result in (whole, again))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_cancelled_run_gives_what_it_has_and_the_model_is_as_it_was(model: Any, tmp_path: Path) -> None:
    before = {name: one.clone() for name, one in model._module.state_dict().items()}
    wanting = [one.requires_grad for one in model._module.parameters()]
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model._module.modules())
    result = run(TRAIN, model, SHORT, Watched(tmp_path, stop_at=6))
    assert result.steps == 6
    assert "6 of 40" in result.warnings[0]
    assert formats.read(result.sae).d_sae == 32
    assert all(torch.equal(one, before[name]) for name, one in model._module.state_dict().items())
    assert [one.requires_grad for one in model._module.parameters()] == wanting
    assert sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model._module.modules()) == hooks


def test_what_fills_up_a_shorter_text_is_no_activation(model: Any, tmp_path: Path) -> None:
    report = Notebook(tmp_path, bar=False)
    harvester = Harvester.of(model, "resid_post", 2, report, 1)
    corpus = Corpus.of(report, model, TEXTS[:4], 12)
    assert len({len(one) for one in corpus.sequences}) > 1
    ids, mask = corpus.batch(range(4))
    together = harvester.states(ids)[harvester.kept(mask)]
    alone = torch.cat([harvester.states(one[None])[0, 1:] for one in corpus.sequences])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_normalized_training_gives_a_dictionary_for_activations_as_they_are(model: Any, tmp_path: Path) -> None:
    result = run(TRAIN, model, {**SHORT, "normalize": True, "steps": 150, "lr": 1e-2}, Notebook(tmp_path, bar=False))
    assert result.metric("variance_explained").value > 0.5
    curve = result.table("curve")
    assert curve.rows[-1][curve.columns.index("explained")] == pytest.approx(
        result.metric("variance_explained").value, abs=0.15
    )


# --- measures with known answers


def keep(notebook: Notebook, dictionary: Dictionary) -> str:
    return notebook.artifact("sae", dict(dictionary.weights), dictionary.config())


def mirror(d: int) -> Dictionary:
    """Each dimension's positive and negative part: x comes back as it was."""
    both = torch.cat([torch.eye(d), -torch.eye(d)], 1)
    weights = {"W_enc": both, "W_dec": both.T.contiguous(), "b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d)}
    return Dictionary("standard", weights, metadata={"site": "resid_post", "layer": 2})


def nothing(d: int) -> Dictionary:
    """No feature is ever on: zero comes back."""
    weights = {"W_enc": torch.zeros(d, 8), "W_dec": torch.eye(8, d), "b_enc": -torch.ones(8), "b_dec": torch.zeros(d)}
    return Dictionary("standard", weights, metadata={"site": "resid_post", "layer": 2})


def test_a_perfect_dictionary_recovers_everything_and_an_empty_one_nothing(model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    asked = {"data": TEXTS[:4], "model_batch": 3}
    perfect = run(EVAL, model, {**asked, "sae": keep(notebook, mirror(64))}, notebook)
    for name in ("variance_explained", "gamma", "loss_recovered", "loss_recovered_over_mean"):
        assert perfect.metric(name).value == pytest.approx(1.0, abs=1e-4), name
    assert perfect.metric("l0").value == pytest.approx(64, abs=0.5)
    assert perfect.metric("loss_with_sae").value == pytest.approx(perfect.metric("loss").value, abs=1e-4)
    low, high = perfect.metric("loss").ci95 or (0.0, 0.0)
    assert low < perfect.metric("loss").value < high
    with torch.no_grad():
        ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
        by_hand = float(model._module(ids, labels=ids).loss)
    one = run(EVAL, model, {"data": TEXTS[:1], "sae": keep(notebook, mirror(64))}, notebook)
    assert one.metric("loss").value == pytest.approx(by_hand, rel=1e-4)
    empty = run(EVAL, model, {**asked, "sae": keep(notebook, nothing(64))}, notebook)
    assert empty.metric("l0").value == 0
    assert empty.metric("alive").value == 0
    assert empty.metric("loss_recovered").value == pytest.approx(0.0, abs=1e-4)
    assert empty.metric("loss_with_sae").value == pytest.approx(empty.metric("loss_zero_ablated").value)


def labelled(model: Any, notebook: Notebook, *, shuffled: bool) -> str:
    """Labels that say where 6 of the mirror's features are on; shuffled: those of another text's positions."""
    ids = torch.randint(2, 399, (40, 9), generator=torch.Generator().manual_seed(8))
    harvester = Harvester.of(model, "resid_post", 2, notebook, 0)
    on = (mirror(64).encode(harvester.states(ids)) > 0)[..., [0, 5, 11, 70, 80, 99]]
    if shuffled:
        on = on.flatten(0, 1)[torch.randperm(360, generator=torch.Generator().manual_seed(9))].reshape(on.shape)
    tensors = {"tokens": ids, "labels": on.to(torch.uint8)}
    return notebook.artifact("data", tensors, {"names": [f"property {number}" for number in range(6)]})


def test_coverage_and_reconstruction_are_1_where_features_are_the_labels_and_low_where_they_are_not(
    model: Any, tmp_path: Path
) -> None:
    notebook = Notebook(tmp_path, bar=False)
    # A feature that follows another by chance is listed for its property too: only the surest are.
    asked = {"sae": keep(notebook, mirror(64)), "data": TEXTS[:2], "precision": 1.0, "min_fires": 60}
    names = ("coverage", "coverage_shared_threshold", "board_reconstruction", "board_reconstruction_pooled")
    right = run(EVAL, model, {**asked, "labels": labelled(model, notebook, shuffled=False)}, notebook)
    for name in names:
        assert right.metric(name, "heldout").value == pytest.approx(1.0), name
    rows = right.table("properties").rows
    assert [row[:4] for row in rows[:2]] == [("property 0", 0, 0.0, 1.0), ("property 1", 5, 0.0, 1.0)]
    wrong = run(EVAL, model, {**asked, "labels": labelled(model, notebook, shuffled=True)}, notebook)
    assert wrong.metric("coverage", "heldout").value < 0.75  # each is on half the time: chance is 2/3
    assert wrong.metric("board_reconstruction").value < 0.3
    assert wrong.metric("coverage", "train").value >= wrong.metric("coverage_shared_threshold", "train").value


def test_labels_that_do_not_fit_are_refused(model: Any, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, bar=False)
    ids, asked = torch.ones(4, 5, dtype=torch.long), {"sae": keep(notebook, mirror(64)), "data": TEXTS[:2]}
    for tensors, said in (
        ({"tokens": ids}, "expected `tokens`"),
        ({"tokens": ids, "labels": torch.zeros(4, 4, 2)}, "expected `tokens`"),
        ({"tokens": ids, "labels": torch.full((4, 5, 2), 3)}, "0 and 1"),
        ({"tokens": ids.float(), "labels": torch.zeros(4, 5, 2)}, "whole numbers"),
    ):
        with pytest.raises(InvalidArtifact, match=said):
            run(EVAL, model, {**asked, "labels": notebook.artifact("data", tensors, {})}, notebook)
    with pytest.raises(InvalidRequest, match="64 dimensions"):
        run(EVAL, model, {**asked, "sae": keep(notebook, mirror(32))}, notebook)


# --- formats


@pytest.mark.parametrize("kind", ["standard", "gated", "topk", "batchtopk", "jumprelu"])
def test_the_formats_of_saelens_and_dictionary_learning_are_kept(kind: str, tmp_path: Path) -> None:
    x, _ = known(64, 4)
    coder = Coder(params_of(kind, steps=50), 16, seed=2)
    for step in range(5):
        coder.step(step, x)
    told = {"sparsity": KINDS[kind]["sparsity"], "trained_as": kind, "layer": 3, "site": "resid_post"}
    mine = coder.dictionary(2.0, x, told)
    folder = formats.write(mine, tmp_path / "ours")
    config = json.loads((folder / "cfg.json").read_text())
    architecture = "jumprelu" if kind == "batchtopk" else kind
    assert config["architecture"] == architecture
    assert (config["d_in"], config["d_sae"], config["normalize_activations"]) == (16, 48, "none")
    assert ("k" in config) == (kind == "topk")
    assert load_file(folder / "sae_weights.safetensors").keys() == NAMES[architecture]
    assert load_file(folder / "sae_weights.safetensors")["W_enc"].shape == (16, 48)
    again = formats.read(folder)
    torch.testing.assert_close(again.encode(x), mine.encode(x), rtol=0, atol=0)
    there = formats.to_dictionary_learning(mine, tmp_path / "theirs")
    trainer = json.loads((there / "config.json").read_text())["trainer"]
    state = torch.load(there / "ae.pt", weights_only=True)
    assert trainer["dict_size"] == 48
    assert state["W_enc" if kind == "jumprelu" else "encoder.weight"].shape == (
        (16, 48) if kind == "jumprelu" else (48, 16)
    )
    back = formats.from_dictionary_learning(there)
    assert back.metadata["layer"] == 3
    torch.testing.assert_close(back.encode(x), mine.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(back.decode(mine.encode(x)), mine.decode(mine.encode(x)), rtol=0, atol=0)


def test_a_dictionary_that_is_no_dictionary_is_refused() -> None:
    good = mirror(4)
    for config, tensors, said in (
        ({"architecture": "transcoder"}, good.weights, "architecture"),
        ({**good.config(), "normalize_activations": "layer_norm"}, good.weights, "normalize_activations"),
        ({**good.config(), "architecture": "topk"}, good.weights, "k=None"),
        ({**good.config(), "architecture": "gated"}, good.weights, "lacks"),
        (good.config(), {**good.weights, "W_enc": torch.zeros(8, 4)}, "W_enc has the shape"),
    ):
        with pytest.raises(InvalidArtifact, match=said):
            Dictionary.of(Opened("sae", tensors, config, "it"))


# --- in a trace


def trained(model: Any, folder: Path, **more: Any) -> str:
    asked = {**SHORT, "layer": 1, "steps": 60, "lr": 1e-2, "sparsity": {"type": "l1", "weight": 0.01}, **more}
    return run(TRAIN, model, asked, Notebook(folder, bar=False)).sae


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_a_splice_changes_nothing_and_an_ablated_feature_does(family: str, tmp_path: Path) -> None:
    model = small_models.of_family(family)
    data = ["Paris is the capital of France"] * 4 if family == "mamba" else TEXTS
    sae = interlace.sae(model, trained(model, tmp_path, data=data))
    plain = small_models.logits(model)
    head, prompt = small_models.head(model), small_models.PROMPT
    with torch.no_grad():
        with model.trace(prompt):
            features = sae.features[:].save()
            error = sae.error.save()
            rebuilt = sae.reconstruction.save()
            read = head.output.save()
        with model.trace(prompt):
            sae.splice()
            spliced = head.output.save()
    assert torch.equal(read, plain)  # reading changes nothing at all
    assert features.shape == (1, plain.shape[1], 32)
    torch.testing.assert_close(rebuilt, sae.dictionary.decode(features))
    assert float(error.norm()) > 0
    assert float((spliced - plain).abs().max()) <= 1e-5 * max(1.0, float(plain.abs().max()))
    largest = int(features[0, -1].argmax())
    assert float(features[0, -1, largest]) > 0
    with torch.no_grad():
        with model.trace(prompt):
            sae.features[:, :, largest] = 0.0
            sae.features[:, -1, 3] = 2.5
            twice = sae.features[:].save()
            ablated = head.output.save()
    assert float((ablated - plain).abs().max()) > 1e-3
    expected = features.clone()
    expected[:, :, largest] = 0.0
    expected[:, -1, 3] = 2.5
    assert torch.equal(twice, expected)  # the second edit stands on the first, which is not encoded again


def test_gradients_reach_spliced_features(model: Any, tmp_path: Path) -> None:
    sae = interlace.sae(model, trained(model, tmp_path))
    with model.trace(small_models.PROMPT):
        state = model.transformer.h[1].output
        state = state[0] if isinstance(state, tuple) else state
        features = sae.splice()
        after = model.transformer.h[1].output
        after = after[0] if isinstance(after, tuple) else after
        logit = model.lm_head.output[0, -1, 7]
        with logit.backward():
            to_state = after.grad.save()
            to_features = features.grad.save()
    torch.testing.assert_close(to_features, to_state @ sae.dictionary.weights["W_dec"].T, rtol=1e-4, atol=1e-6)


# --- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"arch": "topk"}, "sparsity.type is l1; a topk dictionary takes k"),
        ({"arch": "jumprelu", "sparsity": {"type": "k"}}, "takes l0"),
        ({"arch": "gated", "error": "unsquared"}, "error is for standard"),
        ({"lr_warmup": 40}, "lr_warmup is 40; expected less than steps"),
        ({"sparsity": {"type": "p_anneal", "anneal_start": 50}}, "expected a start before the end"),
        ({"sparsity": {"type": "p_anneal", "anneal_start": 1, "p_end": 0.9, "p_start": 0.5}}, "p_end is 0.9"),
        ({"sparsity": {"type": "p_anneal", "anneal_start": 35}}, "sparsity.updates is 10"),
        ({"sparsity": {"type": "k", "k": 33}, "arch": "topk"}, "at most d_sae"),
        ({"sparsity": {"type": "l7"}}, "l7"),
        ({"batches": 3}, "batches"),
        ({"steps": 0}, "steps"),
    ],
)
def test_params_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainParams.model_validate({**SHORT, **given})


def test_places_that_are_not_there_are_refused(model: Any, tmp_path: Path) -> None:
    for given, said in (({"site": "mixer_out"}, "no site"), ({"layer": 4}, "layer is 4")):
        with pytest.raises(InvalidRequest, match=said):
            run(TRAIN, model, {**SHORT, **given}, Notebook(tmp_path, bar=False))


def test_what_it_costs_is_known_before(model: Any, tmp_path: Path) -> None:
    facts = ModelFacts(n_params=1, n_layers=4, hidden_size=64, vocab_size=400)
    params = TRAIN.params.model_validate(
        {**SHORT, "data": ["The capital of France is Paris. " * 9] * 20, "context": 16}
    )
    cost = TRAIN.estimate(params, facts)
    notebook = Notebook(tmp_path, bar=False)
    run(TRAIN, model, params, notebook)
    # Rounds are harvested whole, of whole batches of texts: never less than was said, and less than twice as much.
    assert cost.tokens <= notebook.cost["tokens"] < 2 * cost.tokens
    assert cost.forwards <= notebook.cost["forwards"] < 2 * cost.forwards
