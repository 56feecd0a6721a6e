"""A small run of each method: its parameters, and the artifacts that they name. A method that is added adds its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import drawn_shapes
import tiny
import tiny_diffusion
import torch
from torch import Tensor

#: Those that `method_server` hosts, and their sources.
MODELS = {tiny.GPT2: tiny.GPT2, tiny_diffusion.SHAPES: str(tiny_diffusion.ASSET)}

Artifact = tuple[str, Mapping[str, Tensor], Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """One run."""

    params: dict[str, Any]
    #: Parameter, dots for nesting -> the artifact that it names: kind, tensors, configuration.
    inputs: dict[str, Callable[[], Artifact]] = field(default_factory=dict)
    seed: int = 0
    #: Of `MODELS`.
    model: str = tiny.GPT2


def _mirror() -> Artifact:
    """A dictionary of the positive and the negative part of each of 64 dimensions."""
    both = torch.cat([torch.eye(64), -torch.eye(64)], 1)
    weights = {"W_enc": both, "W_dec": both.T.contiguous(), "b_enc": torch.zeros(128), "b_dec": torch.zeros(64)}
    config = {"architecture": "standard", "metadata": {"layer": 2, "site": "resid_post"}}
    return "sae", weights, config


def _labelled() -> Artifact:
    """Tokens, and labels that follow from them."""
    tokens = torch.randint(2, 399, (12, 7), generator=torch.Generator().manual_seed(0))
    tokens[3, 5:] = -1
    labels = torch.stack([tokens % 2, tokens % 3 == 0, tokens < 200], -1).to(torch.uint8)
    return "data", {"tokens": tokens, "labels": labels}, {"names": ["odd", "by three", "small"]}


_SHORT = {"layer": 1, "steps": 12, "batch": 8, "buffer": 40, "model_batch": 3, "d_sae": 24, "lr": 1e-3, "lr_warmup": 2}
_TRAINED = {**_SHORT, "sparsity_warmup": 3, "normalize": True}
_ANNEALED = {"type": "p_anneal", "weight": 0.1, "anneal_start": 2}


def _edit() -> Artifact:
    """Of one projection of gpt2-tiny."""
    dice = torch.Generator().manual_seed(1)
    tensors = {"0.u": torch.randn(256, generator=dice) * 0.3, "0.lambda": torch.randn(64, generator=dice) * 0.3}
    entry = {"layer": 1, "site": "mlp_out", "form": "rank_one"}
    return "edit", tensors, {"format": 1, "model_type": "gpt2", "edits": [entry]}


def _checkpoint() -> Artifact:
    """A checkpoint of gpt2-tiny's architecture that shares nothing with it."""
    dice = torch.Generator().manual_seed(2)
    module = tiny._gpt2()
    tensors = {name: torch.randn(one.shape, generator=dice) * 0.02 for name, one in module.named_parameters()}
    return "weights", tensors, {"model_type": "gpt2"}


PROMPTS = ["The Eiffel Tower is located in the city of", "The Colosseum is in"]

_HEADED: dict[str, Any] = {
    "ambiguous": [*PROMPTS, "two plus two is four", "The capital is", "John gave a drink"],
    "labels": ["place", "place", "sum", "place", "sum"],
    "balanced": [*PROMPTS, "two plus two", "The store"],
    "intended": ["place", "place", "sum", "sum"],
    "spurious": ["place", "sum", "place", "sum"],
    "layer": 3,
    "epochs": 3,
    "ig_steps": 2,
    "candidates": 3,
}
_GROUPED: dict[str, Any] = {"ce_max": 50, "samples": 9, "clusters": 3, "nodes": 2, "circuit_samples": 2, "ig_steps": 2}

#: What random weights happen to say of the capitals of these.
SAID = [("France", "\x10"), ("Rome", "\x10"), ("store", "\x10"), ("fox", "\x10"), ("New York", "1"), ("John", "ad")]


def _probes() -> Artifact:
    """Of gpt2-tiny, not trained."""
    dice = torch.Generator().manual_seed(0)
    names = [f"{layer}.{offset}" for layer in (0, 2) for offset in (-2, -1, 0)]
    config = {"format": 1, "kind": "token_offset", "model_type": "gpt2", "site": "resid_post", "vocabulary": None}
    return "probe", {name: torch.randn(400, 64, generator=dice) for name in names}, config


def _circuit() -> Artifact:
    """Of `_mirror`'s features at the second and the last of three tokens."""
    site = {"name": "resid_post.2", "site": "resid_post", "layer": 2, "d_in": 64, "d_sae": 128, "sae": "it"}
    config = {"format": 1, "model_type": "gpt2", "sites": [site], "metric": "logprob", "length": None, "tokens": []}
    nodes = torch.tensor([[0, -1, 3], [0, -1, -1], [0, -1, 70]], dtype=torch.int32)
    edges, weights = torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0)
    return (
        "circuit",
        {"nodes": nodes, "effects": torch.tensor([0.5, -0.4, 0.1]), "edges": edges, "weights": weights},
        config,
    )


_ASKED = [{"clean": prompt, "answer": " Paris"} for prompt in PROMPTS]

PAIRS = [
    {"base": f"The city {one}", "source": f"The city {other}", "answer": "Paris", "source_answer": "two"}
    for one, other in (("is", "of"), ("of", "is"))
]

_RECEIVERS = [{"site": "logits"}, {"site": "mlp_out", "layer": 2}]
_SUITE = [{"name": "turned round", "pairs": PAIRS[::-1]}]

_ROME: dict[str, Any] = {
    "requests": [
        {
            "prompt": "The {} is located in the city of",
            "subject": "Eiffel Tower",
            "target_new": "Rome",
            "target_true": "Paris",
            "paraphrases": ["The city of the {} is"],
            "neighbours": [{"prompt": "The capital of France is", "answer": "Paris"}],
        }
    ],
    "layer": 1,
    "sampled": [[2, 3]],
    "steps": 3,
    "filter_known": False,
}


def _drawn(n: int, seed: int, style: str = "plain") -> Callable[[], Artifact]:
    """Images of shapes, for methods on a pipeline that draws them."""
    return lambda: ("images", *drawn_shapes.draw(n, seed, (style,)).images.pack())


def _lora() -> Artifact:
    """On one layer of the bundled pipeline."""
    path, dice = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", torch.Generator().manual_seed(0)
    factors = {"A": torch.randn(2, 64, generator=dice), "B": torch.randn(96, 2, generator=dice)}
    return "diffusers-lora", {f"{path}.lora_{name}.weight": one for name, one in factors.items()}, {}


CASES: dict[str, list[Case]] = {
    "lens.logit@1": [
        Case({"prompts": PROMPTS, "positions": [0, -1], "targets": [" Paris", " Rome"]}),
        Case({"layers": [-1, 1]}, {"prompts": lambda: ("texts", {}, {"texts": PROMPTS})}),
        Case({"prompts": PROMPTS, "positions": "all", "top": 2}),
    ],
    "norm.lens@1": [Case({"prompts": PROMPTS, "order": 1.5})],
    "kit.steps@2": [Case({"steps": 4, "texts": ["a", "b"], "makes": ["data", "texts", "edit", "sae"]}, seed=7)],
    "trace.causal@1": [
        Case(
            {
                "prompts": [
                    {"text": "The Eiffel Tower is in the city of", "subject": "Eiffel Tower"},
                    {"text": "The Colosseum is in the city of", "subject": "Colosseum"},
                ],
                "samples": 2,
                "positions": ["subject_last", "last"],
                "least_effect": 0.0,
                "states": ["resid_post", "mlp_out"],
                "window": 2,
                "sever": ["attn_out"],
            }
        )
    ],
    "edit.rome@2": [
        Case(_ROME | {"key": "raw", "apply": "together"}),
        Case(_ROME | {"keep_covariance": True}, {"texts": lambda: ("texts", {}, {"texts": PROMPTS * 8})}, seed=3),
    ],
    "flow.knockout@1": [
        Case(
            {
                "prompts": [{"text": "The Colosseum is in the city of", "subject": "Colosseum"}],
                "block": ["subject", "prefix", "last"],
                "window": 2,
            }
        )
    ],
    "elm.erase@1": [
        Case(
            {
                "concept": {"expert_prefixes": ["One who knows: "], "novice_prefixes": ["One who does not: ", "He: "]},
                "retain_texts": ["Two plus two is four, and three plus three is six.", "John gave a drink to Mary."],
                "eta": 3,
                "eta_schedule": "linear_ramp",
                "lora": {"layers": [1, 2], "rank": 2},
                "fluency": {"redirects": ["Well,"], "prompt_chars": [10, 20], "new_tokens": [3, 5], "samples": 3},
                "lr": 1e-3,
                "steps": 2,
                "batch": 2,
                "grad_accum": 2,
                "evaluation": {
                    "erased": {
                        "choices": [
                            {"question": "Big Ben is in", "choices": ["London", "Rome"], "answer": 0},
                            {"question": "The Colosseum is in", "choices": ["London", "Rome"], "answer": 1},
                        ],
                        "cloze": [{"prompt": "The capital of France is", "answer": "Paris"}],
                    },
                    "generations": 2,
                    "generation_tokens": 4,
                    "relearn_steps": 1,
                },
            },
            {"concept_texts": lambda: ("texts", {}, {"texts": [f"{prompt} Paris." for prompt in PROMPTS]})},
            seed=3,
        ),
        Case(
            {
                "concept": {"expert_prefixes": ["One who knows: "], "novice_prefixes": ["One who does not: "]},
                "concept_texts": [f"{prompt} Paris." for prompt in PROMPTS],
                "retain_texts": ["Two plus two is four, and three plus three is six."],
                "lora": {"layers": [1, 2], "rank": 2},
                "lambdas": [1, 1, 0],
                "lr": 1e-2,
                "steps": 3,
                "batch": 2,
                "stop_at_chance": {
                    "erased": [{"question": "Big Ben is in", "choices": ["London", "Rome"], "answer": 0}],
                    "retained": {"cloze": [{"prompt": "Two plus two is", "answer": "four"}]},
                    "every": 1,
                },
                "evaluation": {
                    "erased": {"cloze": [{"prompt": "The Colosseum is in", "answer": "Rome"}]},
                    "generations": 0,
                },
            },
        ),
    ],
    "sae.train@1": [
        Case({"data": PROMPTS, "arch": "gated", "sparsity": _ANNEALED, **_TRAINED, "steps": 16}),
        Case({"arch": "batchtopk", "sparsity": {"type": "k", "k": 4}, **_TRAINED}, {"data": _labelled}, seed=5),
    ],
    "sae.eval@1": [Case({"data": PROMPTS, "model_batch": 5}, {"sae": _mirror, "labels": _labelled})],
    "feature.describe@1": [
        Case({"features": [3, 100], "reading": {"k": 4, "bins": 5}}, {"sae": _mirror, "data": _labelled}),
        Case({"data": PROMPTS, "features": [7], "layer": 1, "site": "mlp_out"}, {"sae": _mirror}),
    ],
    "classifier.shift@1": [
        Case(_HEADED | {"metric": "probe_logit", "reading": {"k": 2, "logits": 1, "bins": 2}}, {"saes": _mirror}),
        Case(
            _HEADED | {"ablate": [{"place": "resid_post.2", "feature": one} for one in (3, 70)], "controls": 2},
            {"saes": _mirror},
            seed=3,
        ),
    ],
    "behaviors.cluster@1": [
        Case(_GROUPED | {"vectors": "sae_effect", "clustering": "spectral"}, {"saes": _mirror, "data": _labelled}),
        Case(_GROUPED | {"data": PROMPTS, "dims": 40}, seed=2),
        Case(
            _GROUPED | {"vectors": "sae_effect", "target": "logit", "clustering": "neighbors", "data": PROMPTS},
            {"saes": _mirror},
        ),
    ],
    "circuit.nodes@1": [
        Case(
            {
                "data": [{"clean": PROMPTS[0], "patch": PROMPTS[0].replace("city", "John"), "answer": " Rome"}],
                "metric": "neg_logprob",
                "ig_steps": 2,
                "check": 3,
                "topk": 50,
            },
            {"saes": _mirror},
            seed=4,
        ),
        Case({"data": _ASKED, "metric": "logprob", "method": "atp", "aggregate": "sum_pos"}, {"saes": _mirror}),
    ],
    "circuit.edges@1": [Case({"data": _ASKED}, {"saes": _mirror, "nodes": _circuit})],
    "circuit.evaluate@1": [Case({"data": _ASKED, "sizes": [1, 2]}, {"saes": _mirror, "nodes": _circuit}, seed=2)],
    "relation.lre@1": [
        Case(
            {
                "template": "The capital of {} is",
                "samples": [{"subject": subject, "object": answer} for subject, answer in SAID],
                "known": "prefix",
                "n_train": 2,
                "icl": False,
                "layers": [-1, 1],
                "ranks": [8],
                "pairs": 4,
            },
            seed=3,
        )
    ],
    "probe.train@1": [
        Case({"texts": [*PROMPTS, "two plus two is four"], "layers": [1], "epochs": 2}),
        Case({"texts": PROMPTS * 2, "target": {"kind": "label", "labels": ["a", "b"] * 2}, "site": "mlp_out"}),
    ],
    "erasure.score@1": [
        Case({"texts": PROMPTS, "layer_start": 0, "layer_end": 2, "shuffles": 2}, {"probes": _probes}),
    ],
    "steer@1": [
        Case(
            {
                "layer": 2,
                "positive": PROMPTS,
                "negative": ["two plus two is four"],
                "prompts": [{"prompt": "The capital is", "wanted": "Paris", "other": "two"}],
                "neutral": PROMPTS,
                "scales": [1.0],
                "controls": 1,
                "write": 2,
            }
        )
    ],
    "mediate@1": [
        Case({"pairs": PAIRS, "mediator": {"family": "parts", "sites": ["mlp_out"], "layers": [1]}, "effect": "NDE"}),
        Case({"pairs": PAIRS, "mediator": {"family": "heads"}, "search": "ig", "ig_steps": 2, "check": 4}),
        Case({"pairs": PAIRS, "mediator": {"family": "subspace", "layer": 1}, "search": "das", "steps": 3}, seed=2),
        Case(
            {"pairs": PAIRS, "mediator": {"family": "features", "most": 9}, "search": "atp", "off_target": _SUITE},
            {"mediator.sae": _mirror},
        ),
        Case({"pairs": PAIRS, "mediator": {"family": "heads"}, "search": "dbm", "steps": 3, "off_target": _SUITE}),
    ],
    "mediate.paths@1": [
        Case({"pairs": PAIRS, "senders": {"family": "heads", "layers": [0, 1]}, "receivers": _RECEIVERS}),
        Case(
            {
                "pairs": PAIRS,
                "senders": {"family": "parts", "sites": ["attn_out"], "positions": "each"},
                "receivers": [
                    *_RECEIVERS,
                    {"site": "head", "layer": 2, "head": 1, "position": -1},
                    {"site": "attn_q", "layer": 2},
                ],
                "through": "mlps",
                "joint": True,
                "batch": 3,
            }
        ),
    ],
    "patch.prompts@1": [
        Case({"a": "The capital of France is", "b": "The capital of Rome is", "answer_a": "two", "layers": [3, 1]}),
        Case({"a": "The Colosseum is in", "b": "The city is in", "answer_a": "Rome", "answer_b": "two", "batch": 3}),
    ],
    "denoise.strip@1": [
        Case({"prompt": "a large red circle", "steps": 3, "show": [0, 2, 3]}, seed=4, model=tiny_diffusion.SHAPES)
    ],
    "lake.sketch@1": [Case({"title": "as it is"})],
    "lake.merge@1": [Case({"shares": [0.5]}, {"of": _edit})],
    "lake.recover@2": [Case({}, {"models": _edit})],
    "lake.compare@1": [
        Case({"probes": PROMPTS}, {"other": _edit, "sae": _mirror}),
        Case({"probes": PROMPTS}, {"other": _checkpoint}),
    ],
    "lake.attribute@1": [Case({"outputs": [{"prompt": PROMPTS[0], "text": " Paris is"}] * 3}, {"candidates": _edit})],
    "lake.attribute_images@1": [
        Case({"draws": 3, "batch": 2}, {"images": _drawn(2, 4), "candidates": _lora}, model=tiny_diffusion.SHAPES)
    ],
    "images.filter@1": [
        Case(
            {
                "text": {"phrases": ["ring", "cross"]},
                "image": {
                    "by": {"scorer": "denoiser", "levels": [0.5], "draws": 1},
                    "concepts": [{"name": "a large red square", "threshold": 1.0}],
                },
            },
            {"images": _drawn(6, 1)},
            model=tiny_diffusion.SHAPES,
        )
    ],
    "customize.pair@1": [
        Case(
            {
                "subject": "a large red sks square",
                "suffix": "in vex style",
                "content_rank": 2,
                "style_rank": 3,
                "content_steps": 1,
                "joint_steps": 2,
                "grad_accum": 2,
                "samples": {"prompts": ["a large blue ring"], "every": 2, "steps": 2},
            },
            {"images": _drawn(2, 0)},
            seed=3,
            model=tiny_diffusion.SHAPES,
        )
    ],
    "customize.generate@1": [
        Case(
            {"prompts": ["a large blue ring"], "per_prompt": 2, "steps": 3, "guidance": 3, "batch": 2},
            seed=3,
            model=tiny_diffusion.SHAPES,
        )
    ],
    "customize.style@1": [
        Case(
            {
                "steps": 2,
                "batch": 2,
                "sample_every": 2,
                "evaluation": {"prompts": ["a large red cross"], "n_per_prompt": 1, "steps": 2, "guidance": 3},
            },
            {"images": _drawn(3, 2, "framed")},
            seed=5,
            model=tiny_diffusion.SHAPES,
        )
    ],
    "images.stylise@1": [
        Case(
            {"steps": 5, "gate_t": 500, "batch": 1},
            {"images": _drawn(2, 3), "adapter": _lora},
            seed=2,
            model=tiny_diffusion.SHAPES,
        )
    ],
    "attribute.images@1": [
        Case(
            {"query_draws": 4, "fisher_draws": 1, "times": 2, "batch": 4, "top": 2, "known": [1], "members": [0]},
            {"queries": _drawn(2, 4), "candidates": _drawn(4, 5), "controls": _drawn(1, 6), "adapter": _lora},
            seed=1,
            model=tiny_diffusion.SHAPES,
        )
    ],
}
