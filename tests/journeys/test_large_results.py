"""Promise: results of megabytes reach every kind of stock client, compressed or not, and stay within their limit."""

from typing import Any

import pytest
import running
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def client(models: Lab, on_processes: running.Running) -> Any:
    """Of a server that sends all results over the socket, and allows 8 MiB."""
    return models.client(tiny.GPT2)


@pytest.mark.parametrize("compress", [True, False], ids=["compressed", "plain"])
def test_noise_and_zeros_by_socket(client: Any, monkeypatch: pytest.MonkeyPatch, compress: bool) -> None:
    monkeypatch.setattr(CONFIG.API, "COMPRESS", compress)
    with client.trace(PROMPT, remote=True):
        noise = torch.randn(1_500_000, generator=torch.Generator().manual_seed(3)).save()
    with client.trace(PROMPT, remote=True):
        zeros = torch.zeros(1_500_000).save()
    assert torch.equal(noise, torch.randn(1_500_000, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(zeros, torch.zeros(1_500_000))


async def test_the_asynchronous_client_gets_megabytes(client: Any) -> None:
    """It cannot fetch from a URL: nnsight, imported first, breaks the import of what httpx needs for that."""
    backend = AsyncRemoteBackend(client.to_model_key(), env=client._remoteable_get_env())
    with client.trace(PROMPT, backend=backend):
        counted = torch.arange(700_000).save()
    assert torch.equal((await backend)["counted"], torch.arange(700_000))


def test_two_names_of_one_tensor_stay_one(client: Any) -> None:
    with client.trace(PROMPT, remote=True):
        one = torch.zeros(1_500_000).save()
        both = [one, one[:1_499_000]].save()
    one[0] = 7
    assert both[0][0] == both[1][0] == 7


def test_noise_over_the_limit(client: Any) -> None:
    with pytest.raises(RemoteError, match=r"limits\.result_bytes"), client.trace(PROMPT, remote=True):
        large = torch.randn(2_200_000).save()
