"""Promises: who waits for a job that draws sees what it has by now; two tenants who draw at once never meet."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import drawn_shapes
import httpx
import pytest
import running
import tiny_diffusion
import torch
from nnsight import CONFIG
from nnsight.modeling import huggingface
from nnsight.modeling.diffusion import DiffusionModel
from PIL import Image

import interlace
from interlace.methods import find
from interlace.methods.notebook import Notebook, run
from interlace.methods.shared.denoising import lora
from interlace.protocol.event import Picture
from interlace.protocol.picture import check_picture

DEADLINE = 180.0  # seconds
SHAPES = tiny_diffusion.SHAPES
STYLE: dict[str, Any] = {"steps": 4, "batch": 2, "crop": 1, "sample_every": 2}
STYLE |= {"evaluation": {"n_per_prompt": 0, "steps": 2, "guidance": 3}}
STRIP = {"prompt": "a large red circle", "steps": 4, "guidance": 1.0}


class Album(Notebook):
    """Keeps what is shown."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed=seed, bar=False)
        self.shown: list[tuple[str, int | None, torch.Tensor]] = []

    def picture(self, pixels: torch.Tensor, title: str = "", step: int | None = None) -> None:
        self.shown.append((title, step, pixels))


def test_training_shows_what_it_draws(
    client: interlace.Client, other: interlace.Client, method_server: running.Running, keys: dict[str, str]
) -> None:
    drawn = drawn_shapes.draw(3, 2, ("framed",)).images
    examples = client.artifacts.upload_images(list(drawn.pixels), list(drawn.captions), rights="our own")
    job = client.submit_method("customize.style", model=SHAPES, params=STYLE, inputs={"images": examples}, seed=5)
    job.wait(DEADLINE)
    shown = [event for event in job.events() if isinstance(event, Picture)]
    assert [(one.number, one.title, one.step) for one in shown] == [
        (1, "the style by now", 2),
        (2, "the style by now", 4),
    ]
    assert job.picture == shown[-1]
    for one in shown:
        assert one.data is not None
        check_picture(one.data)
        assert Image.open(io.BytesIO(one.data)).size[0] > 3 * 32
    path, mine = f"{method_server.url}/v1/jobs/{job.id}", {"ndif-api-key": keys["lab-a"]}
    told = httpx.get(f"{path}/events", headers=mine, timeout=DEADLINE).text.split("\n\n")
    said = [json.loads(one.partition("data: ")[2]) for one in told if "event: picture" in one]
    assert [(one["number"], one["data"]) for one in said] == [(1, None), (2, None)]
    assert httpx.get(f"{path}/pictures/2", headers=mine, timeout=DEADLINE).content == shown[1].data
    for headers in ({"ndif-api-key": keys["lab-b"]}, mine):
        missing = httpx.get(f"{path}/pictures/{2 if headers != mine else 3}", headers=headers, timeout=DEADLINE)
        assert missing.status_code == 404, missing.text


def test_each_step_that_is_drawn_is_shown(client: interlace.Client, here: Any, tmp_path: Path) -> None:
    """The same pictures as on one's own machine; the last is what the pipeline draws."""
    report = Album(tmp_path, 4)
    result = run(find("denoise.strip"), here(SHAPES), STRIP, report)
    assert [step for _, step, _ in report.shown] == [one.step for one in result.pictures] == [0, 1, 2, 3, 4]
    last = Image.open(io.BytesIO(result.pictures[-1].data))
    assert last.tobytes() == report.shown[-1][2].numpy().tobytes()
    job = client.submit_method("denoise.strip", model=SHAPES, params=STRIP, seed=4)
    job.wait(DEADLINE)
    assert [(one.title, one.step) for one in job.events() if isinstance(one, Picture)] == [
        (title, step) for title, step, _ in report.shown
    ]


@pytest.fixture
def hosted(method_server: running.Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline without weights."""
    monkeypatch.setattr(CONFIG.API, "HOST", method_server.url)
    huggingface._ID_CACHE[str(tiny_diffusion.ASSET)] = SHAPES
    return DiffusionModel(str(tiny_diffusion.ASSET))


def adapter(model: Any, folder: Path, seed: int) -> tuple[Notebook, str]:
    """A LoRA with random weights."""
    torch.manual_seed(seed)
    report = Notebook(folder, seed=4, bar=False)
    with lora.attached(model.pipeline.unet, {"style": lora.Wish(4)}) as layers:
        for one in layers.parameters("style").values():
            one.data = torch.randn_like(one) / 4
        said = {"base_sha256": lora.digest(model.pipeline.unet)}
        return report, report.artifact("diffusers-lora", layers.tensors("style"), layers.config("style", said))


def test_two_tenants_draw_with_their_own_at_once(
    client: interlace.Client, other: interlace.Client, hosted: Any, here: Any, tmp_path: Path
) -> None:
    """Traces that name an adapter or none, and methods that are given one, of two tenants on one pipeline: each gets
    the values that it gets alone. Neither can name the other's."""
    clients, model = {"lab-a": client, "lab-b": other}, here(SHAPES)
    prompt = STRIP["prompt"]
    how = {"seed": 3, "num_inference_steps": 2, "output_type": "latent"}
    expected: dict[tuple[str, str], torch.Tensor] = {}
    refs: dict[str, str] = {}
    with model.generate(prompt, **how):
        bare = model.output.images.save()
    bare = bare.detach()
    for number, (tenant, one) in enumerate(clients.items(), 1):
        report, name = adapter(model, tmp_path / tenant, number)
        refs[tenant] = one.artifacts.upload(Path(name), kind="diffusers-lora", model=SHAPES).ref
        own = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
        own.pipeline.load_lora_weights(name, adapter_name="a")
        own._update(own._module)
        with own.generate(prompt, **how):
            latents = own.output.images.save()
        expected[tenant, "trace"] = latents.detach()
        params = {"prompts": [prompt], "steps": 2, "styles": [{"adapter": name, "start": 0.0}]}
        drawn = run(find("customize.generate"), model, params, report)
        expected[tenant, "method"] = report.open(drawn.images).tensors["images"]
    assert not torch.allclose(expected["lab-a", "trace"], expected["lab-b", "trace"], atol=1e-2)
    assert not torch.equal(expected["lab-a", "method"], expected["lab-b", "method"])
    assert not torch.allclose(bare, expected["lab-a", "trace"], atol=1e-2)
    together = threading.Barrier(4)

    def trace(tenant: str, weight: float | None) -> torch.Tensor:
        named = {} if weight is None else {"lora": {refs[tenant]: weight}}
        with hosted.generate(prompt, backend=clients[tenant].on(hosted, **named), **how):
            latents = hosted.output.images.save()
        return latents.detach()

    def work(tenant: str, kind: str) -> None:
        together.wait()
        for turn in range(3):
            if kind == "method":
                params = {"prompts": [prompt], "steps": 2, "styles": [{"adapter": refs[tenant], "start": 0.0}]}
                drawn = clients[tenant].run("customize.generate", model=SHAPES, params=params, seed=4, follow=False)
                assert torch.equal(clients[tenant].artifacts.images(drawn.images).pixels, expected[tenant, kind])
            else:
                torch.testing.assert_close(trace(tenant, 1.0), expected[tenant, kind])
                torch.testing.assert_close(trace(tenant, None if turn % 2 else 0.0), bare)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, tenant, kind) for tenant in clients for kind in ("trace", "method")]:
            done.result()
    with pytest.raises(Exception, match="that is yours"):
        with hosted.generate(prompt, backend=client.on(hosted, lora={refs["lab-b"]: 1.0}), **how):
            hosted.output.images.save()
