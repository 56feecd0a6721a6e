"""Sparse dictionaries of activations as functions: the coder that `sae` trains, and that traces and circuits read.

Weights are named and laid out as SAELens 6 has them on disk: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_in]``,
``b_enc [d_sae]``, ``b_dec [d_in]``; gated: ``b_gate``, ``b_mag``, ``r_mag`` for ``b_enc``; jumprelu: ``threshold`` too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from interlace.protocol.errors import InvalidArtifact

if TYPE_CHECKING:
    from torch import Tensor

    from interlace.methods.base import Opened

#: What each architecture is made of. A batch-top-k dictionary is a jumprelu one when it is used (2412.06410, Eq. 7).
NAMES = {
    "standard": frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
    "gated": frozenset({"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"}),
    "topk": frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
    "jumprelu": frozenset({"W_enc", "b_enc", "threshold", "W_dec", "b_dec"}),
}


@dataclass(frozen=True)
class Dictionary:
    """An encoder of activations into features, and the decoder back."""

    #: `standard`, `gated`, `topk` or `jumprelu`.
    architecture: str
    weights: "Mapping[str, Tensor]"
    #: Features that stay on at a position; of `topk`.
    k: int | None = None
    #: Whether `b_dec` is taken off before encoding.
    is_centred: bool = True
    #: Whether a feature is measured in units of its decoder row (SAELens' `rescale_acts_by_decoder_norm`).
    is_rescaled: bool = False
    #: What SAELens keeps as `metadata`; our own: `site`, `layer`, `model_type`, `trained_as`.
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return int(self.weights["W_dec"].shape[1])

    @property
    def d_sae(self) -> int:
        return int(self.weights["W_dec"].shape[0])

    def encode(self, x: "Tensor") -> "Tensor":
        """Features ``[..., d_sae]`` of activations ``[..., d_in]``, in the dictionary's dtype."""
        w = self.weights
        x = x.to(w["W_enc"].dtype)
        inner = (x - w["b_dec"] if self.is_centred else x) @ w["W_enc"]
        if self.architecture == "gated":  # 2404.16014, Eq. 6 and 7: weights shared up to exp(r_mag)
            return ((inner + w["b_gate"]) > 0).to(inner.dtype) * torch.relu(inner * w["r_mag"].exp() + w["b_mag"])
        inner = inner + w["b_enc"]
        if self.is_rescaled:
            inner = inner * w["W_dec"].norm(dim=-1)
        if self.architecture == "topk":  # 2406.04093, Eq. 2
            assert self.k is not None
            top = inner.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(inner).scatter(-1, top.indices, torch.relu(top.values))
        features = torch.relu(inner)
        if self.architecture == "jumprelu":  # 2407.14435, Eq. 6
            features = features * (inner > w["threshold"])
        return features

    def decode(self, features: "Tensor") -> "Tensor":
        """Activations ``[..., d_in]`` of features ``[..., d_sae]``."""
        if self.is_rescaled:
            features = features / self.weights["W_dec"].norm(dim=-1)
        return features @ self.weights["W_dec"] + self.weights["b_dec"]

    def config(self) -> dict[str, Any]:
        """`cfg.json` as SAELens 6 reads it from disk."""
        extra = {"k": self.k, "rescale_acts_by_decoder_norm": self.is_rescaled} if self.architecture == "topk" else {}
        return {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": self.is_centred,
            "normalize_activations": "none",
            "reshape_activations": "none",
            **extra,
            "metadata": dict(self.metadata),
        }

    @classmethod
    def of(cls, opened: "Opened") -> "Dictionary":
        """An artifact of the kind `sae`. Raises InvalidArtifact, which says what is not as it must be."""
        config, tensors = opened.config, opened.tensors
        architecture = config.get("architecture")
        if architecture not in NAMES:
            raise InvalidArtifact(
                f"{opened.ref} has the architecture {architecture!r}; expected one of {sorted(NAMES)}."
            )
        for key, plain in (("normalize_activations", "none"), ("reshape_activations", "none")):
            if config.get(key, plain) != plain:
                raise InvalidArtifact(
                    f"{opened.ref} has {key}={config[key]!r}; expected {plain!r}: fold it into the weights first "
                    "(SAELens: `fold_activation_norm_scaling_factor`)."
                )
        k = config.get("k")
        if architecture == "topk" and not (isinstance(k, int) and k > 0):
            raise InvalidArtifact(f"{opened.ref} is a topk dictionary with k={k!r}; expected a number of features.")
        _check_shapes(opened.ref, architecture, tensors)
        return cls(
            architecture,
            {name: tensors[name] for name in NAMES[architecture]},
            k if architecture == "topk" else None,
            bool(config.get("apply_b_dec_to_input", True)),
            bool(config.get("rescale_acts_by_decoder_norm", False)),
            dict(config.get("metadata") or {}),
        )


def _check_shapes(ref: str, architecture: str, tensors: "Mapping[str, Tensor]") -> None:
    if missing := NAMES[architecture] - tensors.keys():
        raise InvalidArtifact(
            f"{ref} lacks {sorted(missing)}; a {architecture} dictionary has {sorted(NAMES[architecture])}."
        )
    if tensors["W_dec"].ndim != 2:
        raise InvalidArtifact(f"{ref}: W_dec has the shape {list(tensors['W_dec'].shape)}; expected [d_sae, d_in].")
    d_sae, d_in = tensors["W_dec"].shape
    for name in NAMES[architecture]:
        wanted = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}.get(name, (d_sae,))
        if tuple(tensors[name].shape) != wanted:
            raise InvalidArtifact(f"{ref}: {name} has the shape {list(tensors[name].shape)}; expected {list(wanted)}.")
        if not tensors[name].is_floating_point():
            raise InvalidArtifact(f"{ref}: {name} is {tensors[name].dtype}; expected floating point numbers.")
