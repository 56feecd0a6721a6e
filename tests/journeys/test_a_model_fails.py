"""Promise: a model that cannot be loaded is told with its reason, and takes no other model down."""

from pathlib import Path

import nnsight
import pytest
import running
import tiny
from nnsight import CONFIG, TransformersModel
from nnsight.intervention.backends.remote import RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"


def test_a_spoiled_file_of_weights_beside_a_good_model(
    models: Lab, home: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [{"source": name, "repo_id": name, "threads": 1} for name in (tiny.GPT2, tiny.SPOILED)]
    with running.interlace(home, {"runtime": "process", "models": entries}, seconds=300) as server:
        monkeypatch.setattr(CONFIG.API, "HOST", server.url)
        client = models.client(tiny.GPT2)
        with client.trace(PROMPT, remote=True):
            shape = nnsight.save(tuple(client.lm_head.output.shape))
        assert shape[-1] == 400

        spoiled = TransformersModel(tiny.SPOILED, task="text-generation")
        with pytest.raises(RemoteError, match="could not be loaded") as caught, spoiled.trace(PROMPT, remote=True):
            spoiled.lm_head.output.save()
        assert "safetensors" in str(caught.value)
