"""All mediators of a family, in one model."""

from typing import Any

import torch

from interlace.methods.base import Report
from interlace.methods.mediate.basis import Coded, Unit
from interlace.methods.mediate.pair_spec import Heads
from interlace.methods.mediate.patching import Patcher, Runs
from interlace.methods.mediate.spec import Features, Neurons, Parts
from interlace.methods.shared.features.dictionary import Dictionary
from interlace.methods.shared.sites import Sites
from interlace.protocol.errors import InvalidArtifact, InvalidRequest


def units_of(sites: Sites, mediator: Parts | Heads | Neurons, tokens: int) -> list[Unit]:
    """Raises InvalidRequest for what the model has not."""
    layers = range(sites.n_layers) if mediator.layers is None else mediator.layers
    if isinstance(mediator, Heads):
        if not sites.n_heads:
            raise InvalidRequest(f"A {sites.model_type} has no heads; take `parts` or `neurons`.")
        return [Unit(f"head:{head}", layer, None) for layer in layers for head in range(sites.n_heads)]
    if isinstance(mediator, Neurons):
        at = position(mediator.position, tokens)
        widths = {layer: width(sites, mediator.site, layer) for layer in layers}
        return [Unit(mediator.site, layer, at, index) for layer in layers for index in range(widths[layer])]
    positions: list[int | None] = [None]
    if mediator.positions == "each":
        positions = list(range(tokens))
    elif mediator.positions != "all":
        positions = [position(one, tokens) for one in mediator.positions]
    return [Unit(site, layer, at) for site in mediator.sites for layer in layers for at in positions]


def features(
    sites: Sites, mediator: Features, runs: Runs, batch: int, report: Report, *, into_source: bool
) -> tuple[list[Unit], Coded]:
    """The features that differ most, in their order, then the error as number -1; and the basis that they are of.

    Raises InvalidArtifact for a dictionary of another width, InvalidRequest where nobody says whose states it is of.
    """
    opened = report.open(mediator.sae, "sae")
    dictionary = Dictionary.of(opened)
    site, layer = mediator.site or dictionary.metadata.get("site"), mediator.layer
    layer = dictionary.metadata.get("layer") if layer is None else layer
    if not isinstance(site, str) or not isinstance(layer, int):
        raise InvalidRequest(
            f"{opened.ref} does not say whose states it is of: name `mediator.site` and `mediator.layer`."
        )
    if dictionary.d_in != width(sites, site, layer):
        raise InvalidArtifact(
            f"{opened.ref} is of states of {dictionary.d_in} numbers; {site} of layer {layer} has "
            f"{width(sites, site, layer)}."
        )
    device = next(sites.module.parameters()).device
    weights = {name: one.to(device) for name, one in dictionary.weights.items()}
    coded = Coded(
        Dictionary(
            dictionary.architecture,
            weights,
            dictionary.k,
            dictionary.is_centred,
            dictionary.is_rescaled,
            dictionary.metadata,
        )
    )
    at = None if mediator.position == "all" else position(mediator.position, runs.tokens)
    patcher = Patcher(sites, runs, batch, report, into_source=into_source)
    total = torch.zeros(dictionary.d_sae, dtype=torch.float64)
    place = [sites.place(site, layer)]
    for rows in patcher.batches():
        (own,), (donor,) = patcher.states(place, rows, into=True), patcher.states(place, rows, into=False)
        gap = coded.gap(own, donor).abs()
        total += (gap if at is None else gap[:, at : at + 1]).double().sum((0, 1)).cpu()
    most = min(mediator.most, int((total > 0).sum()))
    numbers = total.topk(most).indices.sort().values.tolist()
    return [Unit(site, layer, at, number) for number in [*numbers, -1]], coded


def width(sites: Sites, site: str, layer: int) -> int:
    """Numbers of a state."""
    place = sites.place(site, layer)
    if place.part is not None:
        return int(place.part.stop - place.part.start)
    if place.side == "output":
        return int(sites.module.get_input_embeddings().weight.shape[1])
    shape: Any = place.module.weight.shape  # of a linear module, or of transformers' Conv1D, whose weight is turned
    return int(shape[0] if type(place.module).__name__ == "Conv1D" else shape[1])


def position(wanted: int, tokens: int) -> int:
    """From 0. Raises InvalidRequest for one that is not there."""
    at = wanted + tokens if wanted < 0 else wanted
    if not 0 <= at < tokens:
        raise InvalidRequest(f"The position {wanted} is not in prompts of {tokens} tokens.")
    return at
