"""A sparse autoencoder in a trace: its features as values to read and edit, with its error kept."""

from typing import Any

import torch

from interlace import _env, _opened
from interlace.methods.notebook import Notebook
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.sites import Sites, first_of
from interlace.protocol.artifact import Artifact, ArtifactKind
from interlace.protocol.errors import InvalidRequest

_KIND: ArtifactKind = "sae"


class Sae:
    """A dictionary at its place in a model: `x = decode(features) + error`, of which a block changes the features.

    Inside a traced block, at the place's turn in the forward:

    - ``sae.features[:]`` or ``sae.features[:, -1, 7]``: features, [batch, positions, d_sae], or some of them.
    - ``sae.features[:, :, 7] = 0.0``: the model goes on with what the changed features and the same error make.
    - ``sae.features = f``: the same with all of them.
    - ``sae.error``, ``sae.reconstruction``: [batch, positions, d_in].
    - ``sae.splice()``: features that are in the way of the forward, for gradients to reach; the error is a constant.

    What nobody changes stays as it is, to the bit. It travels to a server as the artifact's name.
    """

    def __init__(self, model: Any, name: str, layer: int | None = None, site: str | None = None) -> None:
        self._model, self._name, self._layer, self._site = model, name, layer, site
        self._dictionary: Dictionary | None = None
        self._place: tuple[str, str] | None = None
        self._last: _Taken | None = None
        if name.startswith("artifact:"):
            _env.add(model, "artifacts", name)
        else:  # a folder here: its tensors are what travels
            self._dictionary = Dictionary.of(Notebook(bar=False).open(name, _KIND))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None, "_place": None} | (
            {"_dictionary": None} if self._name.startswith("artifact:") else {}
        )

    def __repr__(self) -> str:
        return f"Sae({self._name})"

    @property
    def dictionary(self) -> Dictionary:
        """The coder itself. Raises InvalidArtifact where it is not at hand: an artifact is, in its job."""
        if self._dictionary is None:
            self._dictionary = Dictionary.of(_opened.opened(self._name))
        return self._dictionary

    @property
    def features(self) -> "Features":
        return Features(self)

    @features.setter
    def features(self, values: torch.Tensor) -> None:
        self._put(values)

    @property
    def error(self) -> torch.Tensor:
        return self._take().error

    @property
    def reconstruction(self) -> torch.Tensor:
        return self.dictionary.decode(self._take().features)

    def splice(self) -> torch.Tensor:
        """The features, which the forward now goes through."""
        return self._put(self._take().features)

    def _take(self) -> "_Taken":
        """What is at the place now: what a change of ours has put there is not encoded again."""
        state = self._state()
        last = self._last
        if last is not None and last.put is not None and _same(last.put, state):
            return last
        features = self.dictionary.encode(state)
        error = (state.to(features.dtype) - self.dictionary.decode(features)).detach()
        self._last = _Taken(features, error)
        return self._last

    def _put(self, features: torch.Tensor) -> torch.Tensor:
        taken, envoy = self._take(), self._envoy()
        if features.shape != taken.features.shape:
            raise ValueError(f"features of the shape {list(features.shape)}; expected {list(taken.features.shape)}.")
        state = self._state()
        new = (self.dictionary.decode(features) + taken.error).to(state.dtype)
        side = self._where()[1]
        if side == "input":
            envoy.input = new
        else:
            whole = envoy.output
            envoy.output = (new, *whole[1:]) if isinstance(whole, tuple) else new
        self._last = _Taken(features, taken.error, new)
        return features

    def _state(self) -> torch.Tensor:
        envoy = self._envoy()
        return first_of(envoy.input if self._where()[1] == "input" else envoy.output)

    def _envoy(self) -> Any:
        envoy = self._model
        for name in self._where()[0].split("."):
            envoy = envoy[int(name)] if name.isdigit() else getattr(envoy, name)
        return envoy

    def _where(self) -> tuple[str, str]:
        """The path of the module, and whether it is what it reads or what it gives."""
        if self._place is None:
            told = self.dictionary.metadata
            layer = told.get("layer") if self._layer is None else self._layer
            if not isinstance(layer, int):
                raise InvalidRequest(f"{self._name} does not say what layer it is of; expected `layer`.")
            place = Sites.unchecked(self._model).place(self._site or str(told.get("site") or "resid_post"), layer)
            if place.part is not None or place.gate is not None:
                raise InvalidRequest(f"A dictionary at {place.site} has no place in a trace: it is part of a state.")
            self._place = place.path, place.side
        return self._place


class _Taken:
    """Features and error of a state, and what was put in its place."""

    def __init__(self, features: torch.Tensor, error: torch.Tensor, put: torch.Tensor | None = None) -> None:
        self.features, self.error, self.put = features, error, put


class Features:
    """`sae.features`: to be indexed as a tensor [batch, positions, d_sae]."""

    def __init__(self, sae: Sae) -> None:
        self._sae = sae

    def __getitem__(self, index: Any) -> torch.Tensor:
        found: torch.Tensor = self._sae._take().features[index]
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        changed = self._sae._take().features.clone()
        changed[index] = value
        self._sae._put(changed)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def sae(model: Any, artifact: Artifact | str, *, layer: int | None = None, site: str | None = None) -> Sae:
    """A sparse autoencoder for the traces of a nnsight model, here and on a server.

    ``artifact`` is what `sae.train` gave: an `artifact:ID`, which remote requests of this model name from now on and
    which is read in their jobs; or the folder of one on this machine. ``layer`` and ``site`` are for a dictionary that
    does not say where it belongs.
    """
    name = artifact.ref if isinstance(artifact, Artifact) else str(artifact)
    return Sae(model, name, layer, site)
