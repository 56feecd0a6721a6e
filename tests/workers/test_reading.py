"""A payload is read as nnsight reads it: the same tree of envoys over the same parts of the model, in less time."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_families
import tiny_hosted
from nnsight.intervention.envoy import Envoy
from nnsight.schema.request import RequestModel

from interlace.protocol.errors import InvalidPayload
from interlace_workers.child import trace, warm
from interlace_workers.child.loading.model import HostedModel, Persistent
from interlace_workers.order import Order

FAMILIES = (tiny.GPT2, tiny_families.MAMBA, tiny_families.LLAVA)


@pytest.fixture(scope="module")
def hosted(families: Path) -> dict[str, HostedModel]:
    return {repo_id: tiny_hosted.hosted(families, repo_id) for repo_id in FAMILIES}


@pytest.fixture
def hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Envoy, "__setstate__", Envoy.__setstate__)  # to be put back
    trace.hasten()


def facts(tree: Envoy) -> list[tuple[Any, ...]]:
    """Of each envoy, from the top: what it is, what it has, and where it hangs."""
    found = []
    for envoy in tree.modules():
        state = {
            name: value.path if isinstance(value, Envoy) else value
            for name, value in vars(envoy).items()
            if name not in ("_parent", "_children", "_child_map", "args", "kwargs")
        }
        parent = envoy.parent
        found.append(
            (type(envoy), state, [child.path for child in envoy._children], parent and (type(parent), parent.path))
        )
    return found


@pytest.mark.parametrize("repo_id", FAMILIES)
def test_the_tree_is_the_one_that_nnsight_builds(
    hosted: dict[str, HostedModel], repo_id: str, request: pytest.FixtureRequest
) -> None:
    model = hosted[repo_id]
    payload = warm.rehearsal(model)
    theirs = RequestModel.deserialize(payload, dict(model.persistent))
    request.getfixturevalue("hastened")
    ours = RequestModel.deserialize(payload, model.persistent, unpickler=trace.Unpickler)
    assert len(facts(ours.envoy)) > 10
    assert facts(ours.envoy) == facts(theirs.envoy)
    assert all(envoy.root is ours.envoy for envoy in ours.envoy.modules())
    assert ours.info.code == theirs.info.code


def test_a_part_that_the_model_has_not_is_named(hosted: dict[str, HostedModel], tmp_path: Path) -> None:
    model, name = hosted[tiny.GPT2], "Module:model.transformer.h.0.attn"
    file = tmp_path / "payload"
    file.write_bytes(warm.rehearsal(model))
    parts = Persistent({key: part for key, part in model.persistent.items() if key != name})
    with pytest.raises(InvalidPayload, match=f"a part that the hosted one has not: {name}"):
        trace.read(replace(model, persistent=parts), Order(compress=False), os.open(file, os.O_RDONLY))
