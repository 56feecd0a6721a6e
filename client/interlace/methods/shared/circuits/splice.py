"""Sparse autoencoders spliced into a model at several places at once (2403.19647, section 2).

At each place the state is ``x = sum_i f_i v_i + b + error``, with f and the error those of the state itself, so that a
splice by itself changes nothing. Nodes are the features f_i and the error, at each token. What a forward in one of the
blocks below does with them:

``watched``      nothing; they are read
``opened``       they are leaves of the graph: their gradients can be had, and the gradient of x passes through as if
                 nothing were spliced, so that places before see the model's own gradient (section 3.1)
``cut``          leaves, too, and nothing passes through: a gradient reaches a place's leaves only by paths on which no
                 other spliced place lies. What the places read is live, so that this is the Jacobian of an edge
``intervened``   they are set, and the forward runs on with what they make
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.methods.base import Opened
from interlace.methods.shared.capture import Change, altered, captured, last_logits
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.sites import Place, Sites
from interlace.protocol.errors import InvalidArtifact, InvalidRequest

_HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)")
_PROBE = 3  # tokens of the forward that tells the places' order


class Values(NamedTuple):
    """What is at one spliced place, in float32."""

    #: [rows, tokens, d_sae]
    features: Tensor
    #: [rows, tokens, d_in]
    error: Tensor


#: What the values at a place become, of those that the state there has.
Intervention = Callable[[Values], Values]


@dataclass(frozen=True)
class Spliced:
    """One dictionary in its place."""

    #: `SITE.LAYER`, such as `resid_post.3`; `embed`.
    name: str
    place: Place
    dictionary: Dictionary
    #: Tokens at a text's beginning that the dictionary was not trained on: all of these is error.
    skip_first: int
    #: What names the dictionary; empty for one that is no artifact.
    ref: str = ""

    @property
    def d_sae(self) -> int:
        return self.dictionary.d_sae

    @property
    def d_in(self) -> int:
        return self.dictionary.d_in

    @property
    def directions(self) -> Tensor:
        """v_i: what a feature of 1 adds to the state, [d_sae, d_in]."""
        rows = self.dictionary.weights["W_dec"]
        return rows / rows.norm(dim=-1, keepdim=True) if self.dictionary.is_rescaled else rows

    def values(self, state: Tensor) -> Values:
        """The features of a state [rows, tokens, d_in] and what they leave."""
        state = state.float()
        features = self.dictionary.encode(state)
        if self.skip_first:
            kept = torch.ones(state.shape[1], 1, device=state.device)
            kept[: self.skip_first] = 0
            features = features * kept
        return Values(features, state - self.dictionary.decode(features))

    def moved(self, old: Values, new: Values) -> Tensor:
        """What a state changes by when its values do: exactly nothing where they are the same."""
        return (new.features - old.features) @ self.directions + (new.error - old.error)


@dataclass(frozen=True)
class Splice:
    """Dictionaries at places of one model, in the order in which a forward comes by them."""

    sites: Sites
    coders: tuple[Spliced, ...]

    @classmethod
    def of(cls, model: Any, coders: Sequence[tuple[Dictionary, str | None, int | None, str]]) -> "Splice":
        """Of ``(dictionary, site, layer, ref)``; a dictionary says itself where it was trained where these are None.

        One forward of 3 tokens tells the places' order and widths. Raises InvalidRequest for a place that the model
        has not, that two dictionaries are for, or that a dictionary does not fit.
        """
        sites = Sites.of(model)
        spliced: dict[str, Spliced] = {}
        for dictionary, site, layer, ref in coders:
            one = _placed(sites, dictionary, site, layer, ref)
            if one.name in spliced:
                raise InvalidRequest(f"Two dictionaries are for {one.name}; splice one at each place.")
            spliced[one.name] = one
        if not spliced:
            raise InvalidRequest("There is no dictionary to splice; expected at least one.")
        device = next(sites.module.parameters()).device
        with torch.no_grad(), captured({name: one.place for name, one in spliced.items()}) as states:
            last_logits(sites.module, torch.arange(1, _PROBE + 1, device=device)[None])
        found = []
        for name, state in states.items():  # in the order of the forward
            one = spliced[name]
            if state.shape[-1] != one.d_in:
                raise InvalidRequest(
                    f"{name} of this model has {state.shape[-1]} dimensions; {one.ref or 'the dictionary'} is of "
                    f"{one.d_in}."
                )
            weights = {key: value.to(state.device, torch.float32) for key, value in one.dictionary.weights.items()}
            found.append(replace(one, dictionary=replace(one.dictionary, weights=weights)))
        return cls(sites, tuple(found))

    @classmethod
    def open(cls, model: Any, opened: Sequence[tuple[Opened, str | None, int | None]]) -> "Splice":
        """Of artifacts of the kind `sae`, with their places where they are not to say so themselves.

        Raises InvalidArtifact, and InvalidRequest as `of`.
        """
        return cls.of(model, [(Dictionary.of(one), site, layer, one.ref) for one, site, layer in opened])

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.coders]

    def __getitem__(self, name: str) -> Spliced:
        """Raises KeyError."""
        return next(one for one in self.coders if one.name == name) if name in self.names else _missing(name)

    @contextmanager
    def watched(self, names: Sequence[str] | None = None) -> Iterator[dict[str, Values]]:
        """Every forward in the block leaves its values here, at all places or at some: those of the last one."""
        seen: dict[str, Values] = {}

        def change_of(one: Spliced) -> Change:
            def look(state: Tensor) -> Tensor:
                seen[one.name] = one.values(state.detach())
                return state

            return look

        with self._altered(change_of, names):
            yield seen

    @contextmanager
    def opened(self, names: Sequence[str] | None = None) -> Iterator[dict[str, Values]]:
        """Values are leaves, of the last forward in the block; the gradient of a state passes through."""
        leaves: dict[str, Values] = {}

        def change_of(one: Spliced) -> Change:
            def open_up(state: Tensor) -> Tensor:
                old = one.values(state.detach())
                leaves[one.name] = new = _leaves(old)
                return state + one.moved(old, new).to(state.dtype)

            return open_up

        with self._altered(change_of, names):
            yield leaves

    @contextmanager
    def cut(self) -> Iterator["Cut"]:
        """Values are leaves, and no gradient passes a place; what each place reads stays live."""
        found = Cut({}, {})

        def change_of(one: Spliced) -> Change:
            def part(state: Tensor) -> Tensor:
                found.live[one.name] = one.values(state)
                old = Values(*(value.detach() for value in found.live[one.name]))
                found.leaves[one.name] = new = _leaves(old)
                return state.detach() + one.moved(old, new).to(state.dtype)

            return part

        with self._altered(change_of, None):
            yield found

    @contextmanager
    def intervened(self, sets: Mapping[str, Intervention]) -> Iterator[None]:
        """Every forward in the block runs on with what ``sets`` make of the values at their places.

        What comes later is encoded anew from what an earlier place has changed. Gradients go through encoders and
        states, as the function is. Raises KeyError for a name that there is not.
        """

        def change_of(one: Spliced) -> Change:
            def put(state: Tensor) -> Tensor:
                old = one.values(state)
                new = sets[one.name](old)
                return state if new is old else state + one.moved(old, new).to(state.dtype)

            return put

        with self._altered(change_of, list(sets)):
            yield

    @contextmanager
    def _altered(self, change_of: Callable[[Spliced], Change], names: Sequence[str] | None) -> Iterator[None]:
        chosen = self.coders if names is None else [self[name] for name in names]
        with altered([(one.place, change_of(one)) for one in chosen]):
            yield


@dataclass(frozen=True)
class Cut:
    """A forward whose spliced places are cut from each other."""

    #: What goes on from each place, to take gradients with respect to.
    leaves: dict[str, Values]
    #: What each place read, as a function of the leaves before it.
    live: dict[str, Values]


def ablated(features: Sequence[int], value: float = 0.0) -> Intervention:
    """These features at all tokens are ``value``; the error is kept (SHIFT's step 4)."""

    def change(values: Values) -> Values:
        new = values.features.clone()
        new[..., list(features)] = value
        return Values(new, values.error)

    return change


def _leaves(values: Values) -> Values:
    return Values(*(value.clone().requires_grad_(True) for value in values))


def _missing(name: str) -> Spliced:
    raise KeyError(name)


def _of_hook(name: str) -> tuple[str, int | None]:
    """The place that SAELens' `hook_name` is, `blocks.5.hook_resid_post`; of one that is not known nothing is said."""
    if name == "hook_embed":
        return "embed", None
    match = _HOOK.fullmatch(name)
    if match is None:
        return "resid_post", None
    layer, site = int(match[1]), match[2]
    return ("resid_post", layer - 1) if site == "resid_pre" else (site, layer)


def _placed(sites: Sites, dictionary: Dictionary, site: str | None, layer: int | None, ref: str) -> Spliced:
    told, what = dictionary.metadata, ref or "the dictionary"
    hooked = _of_hook(str(told.get("hook_name") or ""))
    site = site or str(told.get("site") or hooked[0])
    if layer is None:
        layer = told["layer"] if type(told.get("layer")) is int else hooked[1]
    if site == "embed":
        layer = None
    elif layer is None:
        raise InvalidRequest(f"{what} does not say what layer it is of; expected `layer`.")
    place = sites.place(site, layer)
    if place.gate is not None:
        raise InvalidRequest(f"A dictionary cannot be spliced at {site}, which is behind a gate; take `mixer_act`.")
    skip = told.get("skip_first") or 0
    if type(skip) is not int or skip < 0:
        raise InvalidArtifact(f"{what} has skip_first={str(skip)[:32]!r}; expected a number of tokens.")
    return Spliced(site if layer is None else f"{site}.{layer}", place, dictionary, skip, ref)
