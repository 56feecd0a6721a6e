"""Promise: two tenants, each with a dictionary of its own on one hosted model at once, each get their own values."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import running
import tiny
import torch
from gateway_keys import key_for
from nnsight import TransformersModel

import interlace
from interlace.methods.notebook import Notebook

PROMPT = "The Eiffel Tower is in the city of"
TENANTS = ("lab-a", "lab-b")
TURNS = 2


@pytest.fixture(scope="module")
def resident(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    """One process that runs all jobs, of both tenants."""
    model = {"source": tiny.GPT2, "executor": "resident", "trusted": list(TENANTS), "threads": 1}
    with running.interlace(home, {"runtime": "process", "models": [model]}, seconds=300) as server:
        yield server


def dictionary(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Random directions at the same place for every seed."""
    drawn = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=drawn) / 4 for name, shape in (("W_enc", (64, 96)), ("b_enc", (96,)))}
    weights |= {"W_dec": weights["W_enc"].T.contiguous(), "b_dec": torch.randn(64, generator=drawn) / 4}
    return weights, {"architecture": "standard", "metadata": {"layer": 1, "site": "resid_post"}}


def look(model: Any, sae: Any, **where: Any) -> list[torch.Tensor]:
    """Features, and what the model says once some are changed."""
    with torch.no_grad(), model.trace(PROMPT, **where):
        features = sae.features[:].save()
        sae.features[:, -1, :8] = 2.0
        logits = model.lm_head.output.save()
    return [features, logits]


def refused(client: interlace.Client, ref: str) -> str:
    model = TransformersModel(tiny.GPT2, task="text-generation")
    with pytest.raises(Exception, match="that is yours") as error:
        look(model, interlace.sae(model, ref), backend=client.on(model))
    return str(error.value)


@pytest.fixture(params=["fork", "resident"])
def clients(request: pytest.FixtureRequest) -> Iterator[dict[str, interlace.Client]]:
    """Of each tenant, to a server whose jobs have a process each, or all the same one."""
    if request.param == "fork":
        server, keys = request.getfixturevalue("method_server"), request.getfixturevalue("keys")
    else:
        server = request.getfixturevalue("resident")
        keys = {tenant: key_for(server, tenant) for tenant in TENANTS}
    with ExitStack() as opened:
        yield {tenant: opened.enter_context(interlace.connect(server.url, keys[tenant])) for tenant in TENANTS}


def test_each_reads_and_edits_its_own(clients: dict[str, interlace.Client], local: Any, tmp_path: Path) -> None:
    kept, expected = {}, {}
    for number, (tenant, client) in enumerate(clients.items()):
        weights, config = dictionary(number)
        kept[tenant] = client.artifacts.keep("sae", weights, config, model=tiny.GPT2)
        folder = Notebook(tmp_path / tenant, bar=False).artifact("sae", weights, config)
        expected[tenant] = look(local, interlace.sae(local, folder))
    for one, other in zip(expected["lab-a"], expected["lab-b"], strict=True):
        assert (one - other).abs().max() > 0.1, "the two dictionaries tell the tenants apart"
    together = threading.Barrier(2 * len(TENANTS), timeout=120)

    def ask(tenant: str) -> list[list[torch.Tensor]]:
        model = TransformersModel(tiny.GPT2, task="text-generation")
        sae = interlace.sae(model, kept[tenant])
        together.wait()
        return [look(model, sae, backend=clients[tenant].on(model)) for _ in range(TURNS)]

    with ThreadPoolExecutor(2 * len(TENANTS)) as pool:
        asked = [(tenant, pool.submit(ask, tenant)) for tenant in TENANTS * 2]
        for tenant, answer in asked:
            for values in answer.result():
                for there, here in zip(values, expected[tenant], strict=True):
                    torch.testing.assert_close(there, here)
    # What the other's jobs have had open is not there by its name.
    assert kept["lab-b"].id in refused(clients["lab-a"], kept["lab-b"].ref)
