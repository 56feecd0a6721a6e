"""A `sae` artifact's folder, as SAELens 6 loads it, to and from `dictionary_learning`'s `ae.pt` and `config.json`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from interlace.methods.base import Opened
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.protocol.artifact import LAYOUTS
from interlace.protocol.errors import InvalidArtifact

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
#: Its class: our architecture, its name of a tensor: ours, whether it is transposed.
_CLASSES: dict[str, tuple[str, dict[str, tuple[str, bool]]]] = {
    "AutoEncoder": (
        "standard",
        {
            "bias": ("b_dec", False),
            "encoder.weight": ("W_enc", True),
            "encoder.bias": ("b_enc", False),
            "decoder.weight": ("W_dec", True),
        },
    ),
    "GatedAutoEncoder": (
        "gated",
        {
            "decoder_bias": ("b_dec", False),
            "r_mag": ("r_mag", False),
            "gate_bias": ("b_gate", False),
            "mag_bias": ("b_mag", False),
            "encoder.weight": ("W_enc", True),
            "decoder.weight": ("W_dec", True),
        },
    ),
    "AutoEncoderTopK": (
        "topk",
        {
            "b_dec": ("b_dec", False),
            "encoder.weight": ("W_enc", True),
            "encoder.bias": ("b_enc", False),
            "decoder.weight": ("W_dec", True),
        },
    ),
    "JumpReluAutoEncoder": (
        "jumprelu",
        {name: (name, False) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")},
    ),
}
_CLASSES["BatchTopKSAE"] = ("jumprelu", _CLASSES["AutoEncoderTopK"][1])


def read(folder: Path | str) -> Dictionary:
    """The dictionary in an artifact's folder. Raises InvalidArtifact."""
    folder, layout = Path(folder), LAYOUTS["sae"]
    assert layout.tensors is not None
    assert layout.config is not None
    if not (folder / layout.tensors).is_file() or not (folder / layout.config).is_file():
        raise InvalidArtifact(f"{folder} has not both {layout.tensors} and {layout.config}.")
    config = json.loads((folder / layout.config).read_text())
    return Dictionary.of(Opened("sae", load_file(folder / layout.tensors), config, str(folder)))


def write(dictionary: Dictionary, folder: Path | str) -> Path:
    """An artifact's folder, to upload or for SAELens to load."""
    folder, layout = Path(folder), LAYOUTS["sae"]
    assert layout.tensors is not None
    assert layout.config is not None
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in dictionary.weights.items()}, folder / layout.tensors)
    (folder / layout.config).write_text(json.dumps(dictionary.config(), indent=1))
    return folder


def to_dictionary_learning(dictionary: Dictionary, folder: Path | str) -> Path:
    """Write what its `load_dictionary` reads. Raises InvalidArtifact for what it has no class for."""
    if dictionary.is_rescaled:
        raise InvalidArtifact("dictionary_learning has no features in units of their decoder rows; fold these first.")
    told = dictionary.metadata
    is_batch = told.get("trained_as") == "batchtopk"
    name = {
        "standard": "AutoEncoder",
        "gated": "GatedAutoEncoder",
        "topk": "AutoEncoderTopK",
        "jumprelu": "BatchTopKSAE" if is_batch else "JumpReluAutoEncoder",
    }[dictionary.architecture]
    weights = _with_centring(dictionary, name != "JumpReluAutoEncoder")
    state = {
        theirs: weights[ours].T if turned else weights[ours] for theirs, (ours, turned) in _CLASSES[name][1].items()
    }
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": dictionary.d_in, "dict_size": dictionary.d_sae}
    if name in ("AutoEncoderTopK", "BatchTopKSAE"):
        k = int(told["sparsity"]["k"]) if dictionary.k is None else dictionary.k
        threshold = float(weights["threshold"][0]) if is_batch else -1.0
        state |= {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(threshold)}
        trainer["k"] = k
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({key: one.contiguous().clone() for key, one in state.items()}, folder / _WEIGHTS)
    said = {"layer": told.get("layer"), "submodule_name": told.get("site"), "lm_name": told.get("model_name", "")}
    (folder / _CONFIG).write_text(json.dumps({"trainer": trainer | said}, indent=1))
    return folder


def from_dictionary_learning(folder: Path | str, layer: int | None = None, site: str = "resid_post") -> Dictionary:
    """Read a checkpoint of its trainers; no code of it is run. Raises InvalidArtifact for a class that is not known."""
    folder = Path(folder)
    trainer = json.loads((folder / _CONFIG).read_text())["trainer"]
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise InvalidArtifact(f"{folder} holds a {name}; known are {sorted(_CLASSES)}.")
    state = torch.load(folder / _WEIGHTS, weights_only=True)
    architecture, names = _CLASSES[name]
    weights = {
        ours: (state[theirs].T if turned else state[theirs]).contiguous() for theirs, (ours, turned) in names.items()
    }
    told = {"sae_lens_version": "6.0.0", "site": site, "layer": trainer.get("layer") if layer is None else layer}
    if name == "BatchTopKSAE":
        weights["threshold"] = torch.full_like(weights["b_enc"], float(state["threshold"]))
        told |= {"trained_as": "batchtopk", "sparsity": {"type": "k", "k": int(state["k"])}}
    k = int(state["k"]) if architecture == "topk" else None
    return Dictionary(architecture, weights, k, name != "JumpReluAutoEncoder", False, told)


def _with_centring(dictionary: Dictionary, is_centred: bool) -> "dict[str, Tensor]":
    """The same function's weights, with `b_dec` taken off before encoding or not."""
    weights = dict(dictionary.weights)
    if dictionary.is_centred != is_centred:
        shift = weights["b_dec"] @ weights["W_enc"] * (1 if is_centred else -1)
        for name in ("b_enc", "b_gate"):
            if name in weights:
                weights[name] = weights[name] + shift
        if "b_mag" in weights:
            weights["b_mag"] = weights["b_mag"] + shift * weights["r_mag"].exp()
    return weights
