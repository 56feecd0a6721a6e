"""`interlace status`: what is shown of what `/status` says."""

import json

import pytest

from interlace.protocol.model import ModelKey
from interlace_deploy.commands import status
from interlace_server.deployments import overview
from interlace_state.models import HostedModel, ModelCard, ModelState, Replica

MIB = 1 << 20


def test_memory_that_replicas_share_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    card = ModelCard(key=ModelKey(repo_id="lab/tiny"), commit="0" * 40, dtype="float32", config={})
    replicas = tuple(
        Replica(id=name, state=ModelState.READY, pid=1, node=node, resident_bytes=100 * MIB, holder=holder)
        for name, node, holder in (("a", "x", 7), ("b", "x", 7), ("c", "y", 7))
    )
    hosted = HostedModel(card=card, state=ModelState.READY, replicas=replicas)
    said = json.loads(overview([hosted], 600.0, {}).model_dump_json())
    models = status._models(said)
    assert [one["resident_bytes"] for one in models[0]["replicas"]] == [100 * MIB] * 3
    status._show({"url": "http://localhost", "pid": None, "ready": True, "models": models})
    assert "200 MiB" in capsys.readouterr().out
