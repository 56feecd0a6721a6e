"""One piece of nnsight code, run locally and remotely on the same weights; what it saved must be the same."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from nnsight import CONFIG

import interlace

#: Ordinary nnsight code: gets a model and what to say for ``remote=``, returns what it saved.
Case = Callable[[Any, Any], Mapping[str, Any]]


class Lab(Protocol):
    """What the fixture `lab` offers to a parity test."""

    def local(self, repo_id: str, **options: Any) -> Any:
        """The model with its weights, in this process."""

    def client(self, repo_id: str, **options: Any) -> Any:
        """The model without weights, whose traces the server runs."""


def parity(*repo_ids: str, **options: Any) -> Callable[[Case], Callable[..., None]]:
    """Make a case a test that runs it on both sides of each model, with both clients; ``options`` are the model's."""

    def decorate(case: Case) -> Callable[..., None]:
        @pytest.mark.parametrize("repo_id", repo_ids, ids=[name.partition("/")[2] for name in repo_ids])
        def test(repo_id: str, lab: Lab) -> None:
            local = dict(case(lab.local(repo_id, **options), False))
            client = lab.client(repo_id, **options)
            remote = dict(case(client, True))
            assert not client.dispatched, "the client loaded the weights: nothing ran remotely"
            assert local, "the case saved nothing"
            assert_same(local, remote)
            with interlace.connect(CONFIG.API.HOST) as own, own.installed():
                assert_same(local, dict(case(client, True)), "saved through our own client")

        test.__name__ = test.__qualname__ = case.__name__
        test.__module__, test.__doc__ = case.__module__, case.__doc__
        return test

    return decorate


def assert_same(local: Any, remote: Any, where: str = "saved") -> None:
    """Equal in type and in value: integers, booleans and text exactly, floats by `torch.testing.assert_close`."""
    assert type(remote) is type(local), f"{where}: {type(local)} became {type(remote)}"
    if isinstance(local, torch.Tensor):
        assert remote.layout == local.layout, where
        assert remote.requires_grad == local.requires_grad, where
        torch.testing.assert_close(remote, local, msg=lambda text: f"{where}: {text}", equal_nan=True)
    elif isinstance(local, np.ndarray):
        assert remote.dtype == local.dtype, where
        np.testing.assert_allclose(remote, local, rtol=1e-6, err_msg=where)
    elif isinstance(local, float):
        assert remote == pytest.approx(local, rel=1e-5, nan_ok=True), where
    elif isinstance(local, Mapping):
        assert list(remote) == list(local), where
        for key, value in local.items():
            assert_same(value, remote[key], f"{where}[{key!r}]")
    elif isinstance(local, list | tuple):
        assert len(remote) == len(local), where
        for index, value in enumerate(local):
            assert_same(value, remote[index], f"{where}[{index}]")
    elif dataclasses.is_dataclass(local) and not isinstance(local, type):
        for one in dataclasses.fields(local):
            assert_same(getattr(local, one.name), getattr(remote, one.name), f"{where}.{one.name}")
    elif type(local).__eq__ is object.__eq__ and hasattr(local, "__dict__") and not isinstance(local, type):
        assert_same(vars(local), vars(remote), where)
    else:
        assert remote == local, where
