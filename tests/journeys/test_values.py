"""Promise: a saved value comes home as it was: its type, its precision, its shape, and not a byte more than it has."""

from typing import Any

import nnsight
import pytest
import running
import tiny
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend
from parity import Lab, assert_same, parity

PROMPT = "The Eiffel Tower is in the city of"


@parity(tiny.GPT2)
def test_number_types(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output.detach()
        types = (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool)
        values = {str(one): hidden.to(one) for one in types}.save()
    return {"values": values}


@parity(tiny.GPT2)
def test_unusual_shapes(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output.detach()
        none = hidden[:, :0].save()
        scalar = hidden.sum().save()
        strided = hidden.transpose(0, 2).save()
        single = hidden[0, 0, 0].expand(3, 4).save()
    assert none.shape == (1, 0, 64)
    assert scalar.shape == ()
    return {"none": none, "scalar": scalar, "strided": strided, "single": single}


@parity(tiny.GPT2)
def test_complex_and_sparse_tensors(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output[0].detach()
        spectrum = torch.fft.fft(hidden).save()
        sparse = (hidden * (hidden > 1)).to_sparse().save()
    assert sparse.is_sparse
    return {"spectrum": spectrum, "sparse": sparse}


@parity(tiny.GPT2)
def test_infinity_and_not_a_number(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output.detach()
        odd = torch.stack([hidden / 0, hidden * float("nan"), -hidden / 0]).save()
    return {"odd": odd}


@parity(tiny.GPT2)
def test_torch_objects_that_are_no_tensors(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output
        kind = nnsight.save(hidden.dtype)
        place = nnsight.save(hidden.device)
        shape = nnsight.save(hidden.shape)
    return {"kind": kind, "place": place, "shape": shape}


@parity(tiny.GPT2)
def test_one_value_under_two_names(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[0].output.save()
        same = hidden
        pair = [hidden, hidden].save()
    assert pair[0] is pair[1]
    return {"hidden": hidden, "same": same, "pair": pair}


@parity(tiny.GPT2)
def test_a_torch_module_comes_home(model: Any, remote: Any) -> dict[str, Any]:
    probe = torch.nn.Sequential(torch.nn.Linear(64, 2), torch.nn.Tanh())
    with torch.no_grad():
        probe[0].weight.fill_(0.25)
        probe[0].bias.fill_(-1.0)
    with model.trace(PROMPT, remote=remote):
        with torch.no_grad():
            probe[0].bias += model.transformer.h[0].output.mean()
        trained = nnsight.save(probe.state_dict())
    return {"trained": dict(trained)}


@parity(tiny.GPT2)
def test_whether_a_tensor_wants_gradients(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        attached = model.transformer.h[0].output.save()
        detached = model.transformer.h[1].output.detach().save()
    assert attached.requires_grad
    assert not detached.requires_grad
    return {"attached": attached, "detached": detached}


@parity(tiny.GPT2)
def test_a_result_too_large_for_the_socket_comes_by_url(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote):
        torch.manual_seed(0)
        large = torch.randn(300_000).save()
        small = model.transformer.h[0].output.save()
    return {"large": large, "small": small}


@pytest.mark.parametrize("compress", [True, False], ids=["compressed", "plain"])
@pytest.mark.parametrize("numbers", [10, 300_000], ids=["inline", "by-url"])
def test_with_and_without_compression(lab: Lab, monkeypatch: pytest.MonkeyPatch, compress: bool, numbers: int) -> None:
    monkeypatch.setattr(CONFIG.API, "COMPRESS", compress)

    def case(model: Any, remote: Any) -> dict[str, Any]:
        with model.trace(PROMPT, remote=remote):
            counted = torch.arange(numbers).save()
            hidden = model.transformer.h[0].output.save()
        return {"counted": counted, "hidden": hidden}

    assert_same(case(lab.local(tiny.GPT2), False), case(lab.client(tiny.GPT2), True))


def test_a_view_does_not_ship_its_whole_storage(
    lab: Lab, on_ray: running.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []

    class Weighing(RemoteBackend):  # type: ignore[misc]
        def finalize(self, content: bytes) -> Any:
            received.append(len(content))
            return super().finalize(content)

    monkeypatch.setattr(CONFIG.API, "COMPRESS", False)
    client = lab.client(tiny.GPT2)
    with client.trace(PROMPT, backend=Weighing(client.to_model_key(), env=client._remoteable_get_env())):
        wide = torch.zeros(2_000_000)
        piece = wide[10:20].save()
        part = client.transformer.h[0].output[0, -1].save()
    assert piece.shape == (10,)
    assert part.shape == (64,)
    assert received[0] < 64_000
