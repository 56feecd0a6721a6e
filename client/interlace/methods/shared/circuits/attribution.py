"""The indirect effect of each node of a splice on a number m: exactly, by one gradient, or by integrated gradients.

``IE(m; a) = m(clean | do(a = a_patch)) - m(clean)`` (2403.19647, Eq. 2), with a_patch of the patch prompt at the same
token, or 0 where there is none. Estimates are per example, token and feature; an error is one node a token, whose
effect is a sum over its dimensions.

``atp``    ``grad_a m(clean) . (a_patch - a_clean)`` (Eq. 3): one forward and one backward for all nodes of all places
``ig``     the mean of the gradient at N points on the way from clean to patch, one place at a time, all of its features
           and its error moving together, in place of the one at clean (Eq. 4)
``exact``  one patched row for each node and example

Nodes that stand in for each other, and norms that make up for what is taken away, are in the way of `ig` and not of
`exact`: the effects of `ig` sum to patching the whole place, exact ones need not come near it. Where they do not, no
share of the whole is any node's exact effect, and `reach` keeps the points near the clean run.

The paper's points are ``k/N clean + (1 - k/N) patch`` for k < N, which has the patch's end and not the clean one; its
code's are the opposite. Both are here, and the midpoints, whose error is of second order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from interlace.methods.shared.capture import by_length
from interlace.methods.shared.circuits.examples import Example
from interlace.methods.shared.circuits.metrics import Measure
from interlace.methods.shared.circuits.splice import Intervention, Splice, Values
from interlace.protocol.errors import InvalidRequest

#: Where the N points of `ig` are: with the clean end (the paper's code), the patch's (the paper), neither.
Endpoints = Literal["clean_first", "patch_first", "midpoint"]
ERROR = -1  # the feature that an error node says it is


class Effects(NamedTuple):
    """Of the nodes at one place."""

    #: [rows, tokens, d_sae]
    features: Tensor
    #: [rows, tokens]
    error: Tensor


class Node(NamedTuple):
    """One node of a place."""

    #: A token from 0; None for all tokens at once.
    position: int | None
    #: `ERROR` for the error.
    feature: int


@dataclass(frozen=True)
class Batch:
    """Examples of one number of tokens."""

    #: Which examples they are.
    numbers: list[int]
    #: [rows, tokens]
    clean: Tensor
    #: None where what is patched in is 0.
    patch: Tensor | None


@dataclass(frozen=True)
class Runs:
    """Both runs of a batch as they are: m [rows], and the values at each place."""

    m_clean: Tensor
    clean: dict[str, Values]
    #: None and 0 where there is no patch prompt.
    m_patch: Tensor | None
    patch: dict[str, Values]

    def delta(self, name: str) -> Values:
        """What patching all nodes of a place changes them by."""
        return Values(*(new - old for new, old in zip(self.patch[name], self.clean[name], strict=True)))


@dataclass(frozen=True)
class Attributor:
    """One splice, one m. Run it in `evaluating(model)`."""

    splice: Splice
    measure: Measure

    def runs(self, batch: Batch) -> Runs:
        """Two forwards; one where nothing is patched in."""
        with torch.no_grad():
            with self.splice.watched() as seen:
                m_clean = self.measure(batch.clean, batch.numbers)
            clean = dict(seen)
            if batch.patch is None:
                zero = {name: Values(*(torch.zeros_like(one) for one in own)) for name, own in clean.items()}
                return Runs(m_clean, clean, None, zero)
            with self.splice.watched() as seen:
                m_patch = self.measure(batch.patch, batch.numbers)
            return Runs(m_clean, clean, m_patch, dict(seen))

    def gradients(self, batch: Batch) -> dict[str, Values]:
        """``grad_a m`` at the clean run, for every node: one forward, one backward."""
        with torch.enable_grad(), self.splice.opened() as leaves:
            total = self.measure(batch.clean, batch.numbers).sum()
            return self._backward(total, leaves)

    def atp(self, batch: Batch, runs: Runs) -> dict[str, Effects]:
        gradients = self.gradients(batch)
        return {name: _product(gradients[name], runs.delta(name)) for name in self.splice.names}

    def ig(self, batch: Batch, runs: Runs, steps: int, endpoints: Endpoints, name: str, reach: float = 1.0) -> Effects:
        """Of one place: ``steps`` forwards and backwards. Points go ``reach`` of the way; effects sum to patching the
        whole place where that is 1."""
        delta, total = runs.delta(name), None
        for share in (reach * one for one in shares(steps, endpoints)):
            moved = Values(
                *(
                    (old + share * change).requires_grad_(True)
                    for old, change in zip(runs.clean[name], delta, strict=True)
                )
            )
            with torch.enable_grad(), self.splice.intervened({name: patched_whole(moved)}):
                gradient = self._backward(self.measure(batch.clean, batch.numbers).sum(), {name: moved})[name]
            total = gradient if total is None else Values(*(a + b for a, b in zip(total, gradient, strict=True)))
        assert total is not None
        return _product(Values(*(one / steps for one in total)), delta)

    def exact(self, batch: Batch, runs: Runs, name: str, nodes: Sequence[Node], most: int) -> Tensor:
        """[nodes, rows]: what patching each node by itself changes m by, in forwards of up to ``most`` rows.

        A row in which the patch does not differ is 0 without a forward.
        """
        found = torch.zeros(len(nodes), len(batch.numbers), dtype=torch.float64)
        items = [(node, row) for node, rows in enumerate(_differing(runs.delta(name), nodes)) for row in rows]
        for start in range(0, len(items), most):
            some = items[start : start + most]
            picked = [row for _, row in some]
            patch = Values(*(one[picked] for one in runs.patch[name]))
            with torch.no_grad(), self.splice.intervened({name: _patch([nodes[node] for node, _ in some], patch)}):
                m = self.measure(batch.clean[picked], [batch.numbers[row] for row in picked])
            for (node, row), value in zip(some, (m - runs.m_clean[picked]).double().tolist(), strict=True):
                found[node, row] = value
        return found

    def _backward(self, total: Tensor, leaves: Mapping[str, Values]) -> dict[str, Values]:
        self.measure.report.count(backwards=1)
        flat = [one for values in leaves.values() for one in values]
        gradients = iter(torch.autograd.grad(total, flat, allow_unused=True))
        found = {}
        for name, values in leaves.items():
            own = [next(gradients) for _ in values]
            found[name] = Values(
                *(torch.zeros_like(one) if mine is None else mine for one, mine in zip(values, own, strict=True))
            )
        return found


def batches(tokenizer: Any, examples: Sequence[Example], most: int) -> Iterator[Batch]:
    """Examples of equal numbers of tokens together, up to ``most``; nothing is padded.

    Raises InvalidRequest where a patch has another number of tokens than its prompt, or only some examples have one.
    """
    clean = [tokenizer(one.clean)["input_ids"] for one in examples]
    with_patch = [one.patch is not None for one in examples]
    if any(with_patch) and not all(with_patch):
        raise InvalidRequest(
            f"`data[{with_patch.index(False)}]` has no `patch` and others have; give all of them one, or none."
        )
    if short := [number for number, row in enumerate(clean) if not row]:
        raise InvalidRequest(f"`data[{short[0]}].clean` has no token.")
    patch = [tokenizer(one.patch)["input_ids"] for one in examples] if all(with_patch) else None
    for number, row in enumerate(patch or ()):
        if len(row) != len(clean[number]):
            raise InvalidRequest(
                f"`data[{number}]` has {len(clean[number])} tokens in `clean` and {len(row)} in `patch`; values are "
                "patched token by token, so that both must have as many."
            )
    for numbers, ids in by_length(clean, most):
        yield Batch(numbers, ids, None if patch is None else torch.tensor([patch[number] for number in numbers]))


def shares(steps: int, endpoints: Endpoints) -> list[float]:
    """How much of the patch each point of `ig` has."""
    if endpoints == "midpoint":
        return [(step + 0.5) / steps for step in range(steps)]
    return [step / steps if endpoints == "clean_first" else 1 - step / steps for step in range(steps)]


def _product(gradient: Values, delta: Values) -> Effects:
    return Effects(gradient.features * delta.features, (gradient.error * delta.error).sum(-1))


def patched_whole(values: Values) -> Intervention:
    """All nodes of a place are as in ``values``."""
    return lambda _: values


def _differing(delta: Values, nodes: Sequence[Node]) -> list[list[int]]:
    """For each node the rows in which it is patched with something else."""
    features, error = (delta.features != 0).cpu(), (delta.error != 0).any(-1).cpu()
    found = []
    for position, feature in nodes:
        own = error if feature == ERROR else features[..., feature]
        hit = own.any(1) if position is None else own[:, position]
        found.append(hit.nonzero().flatten().tolist())
    return found


def _patch(nodes: Sequence[Node], patch: Values) -> Intervention:
    """Row i has ``nodes[i]`` of row i of ``patch``."""

    def change(old: Values) -> Values:
        features, error = old.features.clone(), old.error.clone()
        for row, (position, feature) in enumerate(nodes):
            at = slice(None) if position is None else slice(position, position + 1)
            if feature == ERROR:
                error[row, at] = patch.error[row, at]
            else:
                features[row, at, feature] = patch.features[row, at, feature]
        return Values(features, error)

    return change
