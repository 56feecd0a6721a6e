"""Promise: a hosted diffusion pipeline draws with the LoRAs that a request names, as it does locally."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from nnsight.modeling.diffusion import DiffusionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

import interlace

tiny_diffusion = pytest.importorskip("tiny_diffusion", reason="needs hosted diffusion pipelines")

PROMPT = "a large red circle"
SHAPES = "interlace-tests/shapes-diffusion-mini"


@pytest.fixture(scope="module")
def server(home: Path, stock_client: None) -> Iterator[running.Running]:
    models = [{"source": str(tiny_diffusion.ASSET), "repo_id": SHAPES, "threads": 1}]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=300) as server:
        yield server


@pytest.fixture
def client(server: running.Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline without weights."""
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    huggingface._ID_CACHE[str(tiny_diffusion.ASSET)] = SHAPES
    return DiffusionModel(str(tiny_diffusion.ASSET))


@pytest.fixture
def own(server: running.Running) -> Iterator[interlace.Client]:
    with interlace.connect(server.url) as own:
        yield own


def local() -> Any:
    model = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def made(folder: Path, seed: int) -> Path:
    """A LoRA of the unet with random weights, scaled by its metadata."""
    pipeline = local().pipeline
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(seed)
    pipeline.unet.add_adapter(config)
    layers = get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict())
    return folder


def draw(model: Any, **how: Any) -> torch.Tensor:
    with model.generate(PROMPT, seed=3, num_inference_steps=2, output_type="latent", **how):
        latents = model.output.images.save()
    return latents.detach()


def test_it_draws_as_locally(client: Any, own: interlace.Client, tmp_path: Path) -> None:
    folders = [made(tmp_path / str(seed), seed) for seed in (1, 2)]
    one, two = (own.artifacts.upload(folder, kind="diffusers-lora", model=SHAPES) for folder in folders)
    here = local()
    bare = draw(here)
    for number, folder in enumerate(folders):
        here.pipeline.load_lora_weights(folder, adapter_name=f"a{number}")
    here.pipeline.set_adapters(["a0", "a1"], [0.8, -0.5])
    here._update(here._module)
    expected = draw(here)
    assert not torch.allclose(expected, bare, atol=1e-3)
    torch.testing.assert_close(draw(client, backend=own.on(client, lora={one.ref: 0.8, two.ref: -0.5})), expected)
    torch.testing.assert_close(draw(client, remote=True), bare)
    env = {"lora": [{"adapter": one.ref, "weight": 0.8}, {"adapter": two.ref, "weight": -0.5}]}
    stock = RemoteBackend(client.to_model_key(), env=env)
    torch.testing.assert_close(draw(client, backend=stock), expected)
    own.artifacts.delete(one)
    with pytest.raises(RemoteError, match="that is yours"):
        draw(client, backend=own.on(client, lora={one.ref: 1.0}))


def test_what_a_pipeline_does_not_take(client: Any, own: interlace.Client) -> None:
    for env, sentence in (
        ({"peft": "artifact:" + "0" * 16}, "`env.peft` names an adapter, and .* is a DiffusionModel"),
        ({"lora": [{"adapter": "org/name"}]}, "this server fetches no such repository"),
    ):
        with pytest.raises(RemoteError, match=sentence):
            draw(client, backend=RemoteBackend(client.to_model_key(), env=env))


def test_a_schedule_and_both_layouts(client: Any, own: interlace.Client, tmp_path: Path) -> None:
    """On from a timestep down; said by the client or by the model itself; in diffusers' files or PEFT's."""
    artifact = own.artifacts.upload(made(tmp_path / "lora", 1), kind="diffusers-lora", model=SHAPES)
    here = local()
    bare = draw(here)
    here.pipeline.load_lora_weights(tmp_path / "lora", adapter_name="a")
    here._update(here._module)
    first, second = here.pipeline.scheduler.timesteps.tolist()[:2]
    with here.generate(PROMPT, seed=3, num_inference_steps=2, output_type="latent") as run:
        for step in run.iter[:2]:
            here.pipeline.set_adapters(["a"], [0.0 if step == 0 else 0.8])
            here.unet.output  # until it has run
        late = here.output.images.save()
    late = late.detach()
    assert not torch.allclose(late, bare, atol=1e-3)
    when = {"weight": 0.8, "t_max": second}
    torch.testing.assert_close(draw(client, backend=own.on(client, lora={artifact.ref: when})), late)
    own.artifacts.apply(client, artifact, weight=0.8, t_max=second)
    torch.testing.assert_close(draw(client, remote=True), late)
    own.artifacts.take_off(client)
    torch.testing.assert_close(draw(client, remote=True), bare)
    folder = own.artifacts.download(artifact, tmp_path / "peft", layout="peft")
    again = own.artifacts.upload(folder, kind="peft", model=SHAPES)
    torch.testing.assert_close(draw(client, backend=own.on(client, lora={again.ref: when})), late)
    back = own.artifacts.download(again, tmp_path / "back", layout="diffusers-lora")
    files = [load_file(one / "pytorch_lora_weights.safetensors") for one in (tmp_path / "lora", back)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    never = {"weight": 0.8, "t_min": first + 1}
    torch.testing.assert_close(draw(client, backend=own.on(client, lora={artifact.ref: never})), bare)


def test_what_a_method_may_run_on(own: interlace.Client) -> None:
    with pytest.raises(interlace.InterlaceError, match=r"lens\.logit@1 runs on models of the kind TransformersModel"):
        own.run("lens.logit", model=SHAPES, params={"prompts": [PROMPT]}, follow=False)
    cost = own.estimate("customize.generate", model=SHAPES, params={"prompts": [PROMPT] * 3, "steps": 7, "batch": 2})
    assert (cost.forwards, cost.tokens) == (14, 3 * 7 * 2 * 64)
    assert cost.seconds
    assert own.method("customize.pair").wrappers == ["DiffusionModel"]
