"""Path patching: a sender from the source, all else held, what a receiver makes of it put into a run that goes free."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.methods.base import Report, Table
from interlace.methods.mediate import families, tables
from interlace.methods.mediate.basis import Unit, by_place
from interlace.methods.mediate.pair_spec import Heads
from interlace.methods.mediate.patching import Patcher, Runs
from interlace.methods.mediate.path_spec import PathParams, PathResult, Receiver
from interlace.methods.mediate.spec import Parts
from interlace.methods.shared import capture
from interlace.methods.shared.sites import Place, Sites, evaluating
from interlace.protocol.errors import InvalidRequest

#: A sender and its receivers, by their numbers.
Way = tuple[int, tuple[int, ...]]
#: A sender and a pair, by their numbers.
Row = tuple[int, int]
_PATHS = ("sender", "sender_layer", "sender_position", "receiver", "receiver_layer", "receiver_position")
_EFFECT = ("effect", "low", "high", "n")


def run(model: Any, params: PathParams, report: Report) -> PathResult:
    """See `PathParams`. Raises InvalidRequest for what the model has not, and where no sender is before a receiver."""
    with evaluating(model), torch.no_grad():
        sites = Sites.of(model)
        runs = Runs.of(model.tokenizer, params.pairs)
        return _Paths(Patcher(sites, runs, params.batch, report), params).run()


class _Paths:
    def __init__(self, patcher: Patcher, params: PathParams) -> None:
        self._patcher = patcher
        self._params = params
        self._sites = sites = patcher.sites
        tokens = patcher.runs.tokens
        senders = params.senders
        of = senders if isinstance(senders, Heads) else Parts.model_validate(senders.model_dump())
        self._senders = families.units_of(sites, of, tokens)
        self._receivers = [_unit(one, sites, tokens) for one in params.receivers]
        adds = ("mixer_out",) if "mixer_out" in sites.names else ("attn_out", "mlp_out")
        if params.through == "mlps" and "mlp_out" not in adds:
            raise InvalidRequest(f"`through: mlps` cannot be had: a {sites.model_type} has no MLPs; take `direct`.")
        held = [site for site in adds if params.through == "direct" or site != "mlp_out"]
        self._held = {(site, layer): sites.place(site, layer) for layer in range(sites.n_layers) for site in held}
        self._heard = [self._place(unit) for unit in self._receivers]

    def run(self) -> PathResult:
        patcher, runs = self._patcher, self._patcher.runs
        ways = self._ways()
        numbers = list(dict.fromkeys(sender for sender, _ in ways))
        self._afford(len(runs) * (len(ways) + 2 * len(numbers)), len(ways))
        base, source = patcher.margins(runs.base), patcher.margins(runs.source)
        found = torch.empty(len(ways), len(runs), dtype=torch.float64)
        for rows in patcher.batches():
            some = max(1, self._params.batch // len(rows))
            for start in range(0, len(numbers), some):
                self._some(ways, numbers[start : start + some], rows, found)
                patcher.report.progress(patcher.rows, len(runs) * (len(ways) + 2 * len(numbers)))
        senders = [self._senders[number] for number in numbers]
        whole = patcher.exact(senders) - base
        return PathResult(
            metrics=(tables.mean("total_effect", source - base),),
            tables=(
                self._table(ways, found - base),
                _wholes(senders, whole),
                tables.pairs(self._params.pairs, base, source),
            ),
            rows=patcher.rows,
        )

    def _afford(self, rows: int, ways: int) -> None:
        if rows > self._params.budget:
            raise InvalidRequest(
                f"{ways} paths of {len(self._patcher.runs)} pairs are {rows:,} patched rows, and `params.budget` is "
                f"{self._params.budget:,}. Take fewer senders or receivers, `joint`, or a higher budget."
            )

    def _ways(self) -> list[Way]:
        """Each sender with the receivers that come after it."""
        ways: list[Way] = []
        for number, sender in enumerate(self._senders):
            after = tuple(one for one, unit in enumerate(self._receivers) if _is_before(sender, unit))
            ways += [(number, after)] if self._params.joint and after else [(number, (one,)) for one in after]
        if not ways:
            raise InvalidRequest("No sender comes before any receiver.")
        return ways

    def _some(self, ways: Sequence[Way], numbers: Sequence[int], rows: Sequence[int], found: Tensor) -> None:
        """The effects of all ways of some senders, for some pairs, put into ``found``."""
        sent = [(number, row) for number in numbers for row in rows]
        place_in = {one: at for at, one in enumerate(sent)}
        heard = self._hears(sent, rows)
        items = [(way, row) for way, (number, _) in enumerate(ways) if number in numbers for row in rows]
        for start in range(0, len(items), self._params.batch):
            part = items[start : start + self._params.batch]
            changes = []
            for receiver, unit in enumerate(self._receivers):
                into = [at for at, (way, _) in enumerate(part) if receiver in ways[way][1]]
                out_of = [place_in[ways[part[at][0]][0], part[at][1]] for at in into]
                if into:
                    changes.append((self._heard[receiver], _put(unit, into, heard[receiver][out_of])))
            picked = [row for _, row in part]
            logits = self._patcher.logits(self._patcher.into[picked], changes)
            for (way, row), margin in zip(
                part, self._patcher.runs.margin(logits, picked).double().tolist(), strict=True
            ):
                found[way, row] = margin
            self._patcher.rows += len(part)

    def _hears(self, sent: Sequence[Row], rows: Sequence[int]) -> list[Tensor]:
        """What each receiver gives when each sender is as in the source and the rest is held: [sent, tokens, width].

        Of `logits` what the last residual stream has gained.
        """
        base, source = self._states(sent, rows)
        changes: list[tuple[Place, capture.Change]] = []
        for key, numbers in by_place(self._senders).items():
            into = [at for at, (number, _) in enumerate(sent) if number in numbers]
            if into:
                changes.append((self._sites.place(*key), _sending(self._senders, sent, into, source[key])))
        kept: dict[int, Tensor] = {}

        def keep(number: int) -> capture.Change:
            def look(state: Tensor) -> Tensor:
                kept[number] = state
                return state

            return look

        changes += [(place, keep(number)) for number, place in enumerate(self._heard)]
        for (site, layer), place in self._held.items():
            into = [at for at, (number, _) in enumerate(sent) if not _is_of(self._senders[number], site, layer)]
            if into:
                changes.append((place, _put(Unit(site, layer, None), into, base[site, layer][into])))
        picked = [row for _, row in sent]
        self._patcher.logits(self._patcher.into[picked], changes)
        self._patcher.rows += len(sent)
        return [
            kept[number] - base["end", 0] if unit.site == "logits" else kept[number]
            for number, unit in enumerate(self._receivers)
        ]

    def _states(
        self, sent: Sequence[Row], rows: Sequence[int]
    ) -> tuple[dict[tuple[str, int], Tensor], dict[tuple[str, int], Tensor]]:
        """What is held, in the base, and what is sent, in the source, for each of ``sent``: [sent, tokens, width]."""
        at = [rows.index(row) for _, row in sent]
        held = {**self._held, ("end", 0): self._sites.place("resid_post", self._sites.n_layers - 1)}
        senders = {key: self._sites.place(*key) for key in by_place([self._senders[number] for number, _ in sent])}
        found = []
        for places, into in ((held, True), (senders, False)):
            states = self._patcher.states(list(places.values()), rows, into=into)
            found.append({key: state[at] for key, state in zip(places, states, strict=True)})
        return found[0], found[1]

    def _place(self, unit: Unit) -> Place:
        if unit.site == "logits":
            return self._sites.place("resid_post", self._sites.n_layers - 1)
        return self._sites.place(unit.site, unit.layer)

    def _table(self, ways: Sequence[Way], effects: Tensor) -> Table:
        rows: list[tuple[Any, ...]] = []
        for (number, receivers), values in zip(ways, effects.tolist(), strict=True):
            names = [self._receivers[one] for one in receivers]
            one = names[0]
            to: tuple[Any, ...] = (one.site, None if one.site == "logits" else one.layer, one.position)
            if len(names) > 1:
                to = (" + ".join(_name(unit) for unit in names), None, None)
            rows.append((*self._senders[number][:3], *to, *tables.middle(values), len(values)))
        rows.sort(key=lambda row: -abs(row[6]))
        return Table(name="paths", columns=(*_PATHS, *_EFFECT), rows=tuple(rows[: tables.MOST_TOLD]))


def _unit(receiver: Receiver, sites: Sites, tokens: int) -> Unit:
    """Raises InvalidRequest for what the model has not. `logits` are behind all layers."""
    at = None if receiver.position == "all" else families.position(receiver.position, tokens)
    if receiver.layer is None:
        return Unit("logits", sites.n_layers, at)
    site = receiver.site if receiver.head is None else f"{receiver.site}:{receiver.head}"
    sites.place(site, receiver.layer)
    return Unit(site, receiver.layer, at)


def _is_before(sender: Unit, receiver: Unit) -> bool:
    """Whether what one gives can be heard by the other: in a block, attention's by its MLP."""
    within = receiver.site.startswith("mlp") and not sender.site.startswith("mlp")
    return sender.layer < receiver.layer or (sender.layer == receiver.layer and within)


def _is_of(sender: Unit, site: str, layer: int) -> bool:
    """Whether a sender is this component, or a head of it, which must not be held then."""
    same = sender.site == site or (sender.site.startswith("head:") and site == "attn_out")
    return same and sender.layer == layer


def _put(unit: Unit, into: Sequence[int], values: Tensor) -> capture.Change:
    """Rows ``into`` have these values [into, tokens, width] at the unit's tokens; the logits' stream gains them."""
    at = slice(None) if unit.position is None else slice(unit.position, unit.position + 1)

    def change(state: Tensor) -> Tensor:
        changed = state.clone()
        rows = torch.tensor(list(into), device=state.device)
        new = changed[rows]
        new[:, at] = new[:, at] + values[:, at] if unit.site == "logits" else values[:, at]
        changed[rows] = new
        return changed

    return change


def _sending(senders: Sequence[Unit], sent: Sequence[Row], into: Sequence[int], source: Tensor) -> capture.Change:
    """Rows ``into`` have their sender as in the source [sent, tokens, width]."""

    def change(state: Tensor) -> Tensor:
        changed = state.clone()
        for at in into:
            position = senders[sent[at][0]].position
            where = slice(None) if position is None else slice(position, position + 1)
            changed[at, where] = source[at, where]
        return changed

    return change


def _wholes(senders: Sequence[Unit], effects: Tensor) -> Table:
    rows = [
        (*unit[:3], *tables.middle(values), len(values)) for unit, values in zip(senders, effects.tolist(), strict=True)
    ]
    return Table(name="senders", columns=("site", "layer", "position", *_EFFECT), rows=tuple(rows))


def _name(unit: Unit) -> str:
    return unit.site if unit.site == "logits" else f"{unit.site} {unit.layer}"
