"""Promise: a model that takes video is traced as any other where torchvision is, and says what it needs where not."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import tiny
import tiny_video
from nnsight import CONFIG
from nnsight.modeling import huggingface
from parity import Lab, parity

from interlace_workers.child.loading.model import load
from interlace_workers.order import Load

#: Frames, height, width, channels.
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
ASKED = "<video> What is it?"
HAS_TORCHVISION = find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(not HAS_TORCHVISION, reason="needs torchvision: pip install 'interlace[vision]'")


@pytest.fixture(scope="module")
def hub(home: Path, tiny_models: Path) -> Path:
    scratch = home / "video"
    tiny_video.write(scratch)
    tiny.cache(home / "hf" / "hub", tiny_video.VIDEO, scratch)
    return scratch


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is here")
def test_without_torchvision_it_is_said_how_to_get_it(hub: Path) -> None:
    order = Load(str(hub), tiny.task_of(tiny_video.VIDEO), "float32", trust_remote_code=False, threads=1)
    with pytest.raises(ImportError, match=r"pip install 'interlace\[vision\]'"):
        load(order)


@pytest.fixture(scope="module")
def server(home: Path, hub: Path) -> Iterator[running.Running]:
    name = tiny_video.VIDEO
    huggingface._ID_CACHE[name] = name
    model = {"source": name, "repo_id": name, "task": tiny.task_of(name), "threads": 1}
    configuration = {"runtime": "process", "models": [model], "gateway": {"port": 0, "drain_seconds": 1}}
    with running.interlace(home, configuration, seconds=300) as server:
        yield server


@pytest.fixture
def lab(models: Lab, server: running.Running, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Both sides of the model."""
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    return models


@needs_torchvision
@parity(tiny_video.VIDEO)
def test_what_is_seen_in_each_frame(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(ASKED, videos=[FRAMES], remote=remote):
        seen = model.model.multi_modal_projector.output.save()
        model.model.multi_modal_projector.output[:] *= 0.5
        logits = model.lm_head.output.save()
    assert seen.shape == (len(FRAMES), 4, 48)
    return {"seen": seen, "logits": logits}


@needs_torchvision
@parity(tiny_video.VIDEO)
def test_words_about_a_video(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(text=ASKED, videos=[FRAMES], remote=remote, max_new_tokens=3, do_sample=False) as tracer:
        ids = tracer.result.save()
    return {"ids": ids}
