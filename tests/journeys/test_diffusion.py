"""Promise: a hosted diffusion pipeline is read and changed step by step as a local one, and draws the same pixels."""

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import running
import subprocess_client
import tiny_diffusion
import torch
from nnsight import CONFIG
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteError
from nnsight.modeling import huggingface
from nnsight.modeling.diffusion import DiffusionModel
from PIL import Image
from tiny_diffusion import DIT, FLUX, PIXART, SHAPES, XL
from torch.utils import _pytree as pytree

import interlace
from interlace.protocol.event import Ended, Progress, StateChanged
from interlace.protocol.job import JobState

PROMPT, OTHER = "a large red circle", "a large blue square"
STEPS = 6
DEADLINE = 120.0  # seconds
#: Of each layout, what keeps a random model of that size small.
SMALL: dict[str, dict[str, Any]] = {
    SHAPES: {},
    XL: {"height": 32, "width": 32},
    FLUX: {"height": 32, "width": 32, "max_sequence_length": 16},
    PIXART: {"height": 32, "width": 32, "max_sequence_length": 16, "use_resolution_binning": False},
}

#: The first of them once more, whose jobs run in its own process.
RESIDENT = "local/shapes-resident"
ROOT = Path(__file__).parents[2]
PAGE, EXAMPLE = ROOT / "docs" / "diffusion.md", ROOT / "examples" / "denoising.py"
#: Of the page's first picture.
DIGEST = """
import hashlib
print(model.dispatched, hashlib.sha256(images[0].tobytes()).hexdigest())
"""

Case = Callable[[Any, Any], Mapping[str, Any]]


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[tuple[running.Running, dict[str, Path]]]:
    """Plain processes host a pipeline of each layout."""
    folders = (
        {SHAPES: tiny_diffusion.ASSET} if running.RUNTIME == "ray" else tiny_diffusion.write_all(home / "pipelines")
    )
    models = [{"source": str(folder), "repo_id": name, "threads": 1} for name, folder in folders.items()]
    resident = {"executor": "resident", "trusted": ["local"], "threads": 1}
    models.append({"source": str(tiny_diffusion.ASSET), "repo_id": RESIDENT, **resident})
    with running.interlace(home, {"runtime": running.RUNTIME, "models": models}, seconds=400) as server:
        yield server, folders


class Pipelines:
    """Each pipeline with its weights and without; traces of the latter go to the server."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._made: dict[tuple[str, bool], Any] = {}

    def local(self, repo_id: str) -> Any:
        return self._get(repo_id, True)

    def client(self, repo_id: str) -> Any:
        return self._get(repo_id, False)

    def _get(self, repo_id: str, dispatch: bool) -> Any:
        if (repo_id, dispatch) not in self._made:
            folder = str(self._folders[repo_id])
            self._made[repo_id, dispatch] = DiffusionModel(folder, dispatch=dispatch)
            huggingface._ID_CACHE[folder] = repo_id
        return self._made[repo_id, dispatch]


@pytest.fixture(scope="module")
def pipelines(server: tuple[running.Running, dict[str, Path]]) -> Pipelines:
    return Pipelines(server[1])


@pytest.fixture(autouse=True)
def on_server(server: tuple[running.Running, dict[str, Path]], monkeypatch: pytest.MonkeyPatch) -> running.Running:
    monkeypatch.setattr(CONFIG.API, "HOST", server[0].url)
    return server[0]


def identical(*repo_ids: str) -> Callable[[Case], Callable[..., None]]:
    """Make a case a test: what it saves is the same, bit for bit, locally, remotely, and through our own client."""

    def decorate(case: Case) -> Callable[..., None]:
        @pytest.mark.parametrize("repo_id", repo_ids, ids=[name.partition("/")[2] for name in repo_ids])
        def test(repo_id: str, pipelines: Pipelines) -> None:
            local = dict(case(pipelines.local(repo_id), False))
            client = pipelines.client(repo_id)
            assert_identical(local, dict(case(client, True)))
            with interlace.connect(CONFIG.API.HOST) as own, own.installed():
                assert_identical(local, dict(case(client, True)))
            assert not client.dispatched, "the client loaded the weights: nothing ran remotely"

        test.__name__ = test.__qualname__ = case.__name__
        test.__module__, test.__doc__ = case.__module__, case.__doc__
        return test

    return decorate


def assert_identical(local: Any, remote: Any) -> None:
    ours, form = pytree.tree_flatten(local)
    theirs, their_form = pytree.tree_flatten(remote)
    assert form == their_form
    assert ours
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
        else:
            assert one == other


def settings(model: Any, **more: Any) -> dict[str, Any]:
    """What every run of a pipeline is asked for."""
    name = next(name for name in SMALL if model.repo_id.endswith(name.rpartition("/")[2]))
    return {"num_inference_steps": STEPS, "seed": 3, **SMALL[name], **more}


def denoiser(model: Any) -> Any:
    return model.unet if hasattr(model.pipeline, "unet") else model.transformer


def colour(image: Any) -> str:
    """Which of red, green and blue a picture on white has most of."""
    paint = 255 - np.asarray(image, dtype=float).reshape(-1, 3).mean(0)
    return ("red", "green", "blue")[int(paint.argmin())]


@identical(SHAPES, XL, FLUX, PIXART)
def test_a_picture(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **settings(model)):
        output = model.output.save()
    (image,) = output.images
    assert image.size == (32, 32)
    return {"output": output}


@identical(SHAPES, XL, FLUX, PIXART)
def test_the_denoiser_at_every_step(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **settings(model)) as tracer:
        noise = [].save()
        for _step in tracer.iter[:STEPS]:
            noise.append(denoiser(model).output[0])
        images = model.output.images.save()
    assert len(noise) == STEPS
    assert not torch.equal(noise[0], noise[1])
    return {"noise": noise, "images": images}


@identical(SHAPES)
def test_all_steps_by_name(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **settings(model)) as tracer:
        norms = [].save()
        for _step in tracer.all():
            norms.append(model.unet.mid_block.output.norm())
    assert len(norms) == STEPS
    return {"norms": norms}


@identical(SHAPES, XL)
def test_a_trace_takes_one_step(model: Any, remote: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=remote, seed=1, **SMALL[SHAPES]):
        text = model.text_encoder.output[0].save()
        hidden = model.unet.down_blocks[1].output[0].save()
        decoded = model.vae.decoder.output.save()
    return {"text": text, "hidden": hidden, "decoded": decoded}


@pytest.mark.parametrize(("kind", "expected"), [("np", np.ndarray), ("pt", torch.Tensor), ("latent", torch.Tensor)])
def test_other_kinds_of_pictures(pipelines: Pipelines, kind: str, expected: type) -> None:
    found = []
    for model, remote in ((pipelines.local(SHAPES), False), (pipelines.client(SHAPES), True)):
        with model.generate(PROMPT, remote=remote, **settings(model, output_type=kind)):
            images = model.output.images.save()
        assert isinstance(images, expected)
        found.append(images)
    assert_identical(*found)


@identical(SHAPES)
def test_prompts_guidance_and_several_pictures_of_each(model: Any, remote: Any) -> dict[str, Any]:
    many = settings(model, num_images_per_prompt=2, guidance_scale=4.0, negative_prompt=["a ring", ""])
    with model.generate([PROMPT, OTHER], remote=remote, **many):
        rows = model.unet.output[0].shape[0].save()
        images = model.output.images.save()
    assert (rows, len(images)) == (8, 4)
    assert len({image.tobytes() for image in images}) == 4
    return {"images": images}


@identical(SHAPES)
def test_no_guidance(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **settings(model, guidance_scale=0.0)):
        noise = model.unet.output[0].save()
    assert noise.shape[0] == 1
    return {"noise": noise}


@identical(SHAPES, PIXART)
def test_invokes_have_their_own_rows(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(remote=remote, **settings(model)) as tracer:
        with tracer.invoke(PROMPT):
            one = denoiser(model).output[0].save()
        with tracer.invoke([OTHER, "a small green ring"]):
            two = denoiser(model).output[0].save()
        with tracer.invoke():
            images = model.output.images.save()
    assert (one.shape[0], two.shape[0], len(images)) == (2, 4, 3)
    return {"one": one, "two": two, "images": images}


@identical(SHAPES)
def test_a_generator_of_ones_own(model: Any, remote: Any) -> dict[str, Any]:
    how = settings(model, seed=None, generator=torch.Generator().manual_seed(11))
    with model.generate(PROMPT, remote=remote, **how):
        image = nnsight.save(model.output.images[0])
    return {"image": image}


@identical(SHAPES, XL, FLUX, PIXART)
def test_an_edit_at_one_step_only(model: Any, remote: Any) -> dict[str, Any]:
    plain = {}
    for edited in (None, 2):
        with model.generate(PROMPT, remote=remote, **settings(model)) as tracer:
            noise = [].save()
            for step in tracer.iter[:STEPS]:
                if step == edited:
                    denoiser(model).output[0][:] *= 0.5
                noise.append(denoiser(model).output[0].clone())
        plain[edited] = list(noise)
    same = [torch.equal(one, other) for one, other in zip(plain[None], plain[2], strict=True)]
    assert same == [True, True, False, False, False, False]
    return {"noise": plain[2]}


@identical(SHAPES)
def test_another_prompts_words_paint_another_colour(model: Any, remote: Any) -> dict[str, Any]:
    """The small pipeline has real abilities: it draws what its text encoder says."""
    how = settings(model, num_inference_steps=10, guidance_scale=3.0, seed=0)
    with model.session(remote=remote):
        with model.generate(OTHER, **how):
            words = model.text_encoder.output.last_hidden_state.save()
            blue = nnsight.save(model.output.images[0])
        with model.generate(PROMPT, **how):
            red = nnsight.save(model.output.images[0])
        with model.generate(PROMPT, **how):
            model.text_encoder.output.last_hidden_state[:] = words
            patched = nnsight.save(model.output.images[0])
    assert (colour(blue), colour(red), colour(patched)) == ("blue", "red", "blue")
    assert patched == blue
    return {"blue": blue, "red": red, "patched": patched}


@identical(SHAPES)
def test_an_early_stop(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **settings(model)) as tracer:
        noise = [].save()
        for step in tracer.iter[:]:
            noise.append(model.unet.output[0])
            if step == 1:
                tracer.stop()
    assert len(noise) == 2
    return {"noise": noise}


@identical(SHAPES)
def test_a_component_by_itself_and_its_gradient(model: Any, remote: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    sample, words = torch.randn(2, 8, 8, 8), torch.randn(2, 20, 64)
    with model.session(remote=remote):  # a component's own trace has no `remote`
        with model.unet.trace(sample, torch.tensor(500), encoder_hidden_states=words):
            hidden = model.unet.mid_block.output
            hidden.requires_grad_()
            noise = model.unet.output[0]
            with noise.pow(2).sum().backward():
                slope = hidden.grad.save()
            saved = noise.detach().save()
        with model.vae.trace(torch.zeros(1, 3, 32, 32)):
            latents = model.vae.quant_conv.output.detach().save()
    assert slope.abs().sum() > 0
    return {"slope": slope, "noise": saved, "latents": latents}


@identical(SHAPES)
def test_another_scheduler_is_the_jobs_own(model: Any, remote: Any) -> dict[str, Any]:
    former = model.pipeline.scheduler
    with model.generate(PROMPT, remote=remote, **settings(model)):
        from diffusers import EulerDiscreteScheduler

        config = {**model.pipeline.scheduler.config, "rescale_betas_zero_snr": False}
        model.pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
        other = nnsight.save(model.output.images[0])
    model.pipeline.scheduler = former
    with model.generate(PROMPT, remote=remote, **settings(model)):
        image = nnsight.save(model.output.images[0])
    assert other != image
    return {"other": other, "image": image}


@identical(SHAPES)
def test_a_picture_of_a_picture(model: Any, remote: Any) -> dict[str, Any]:
    """The same components under another pipeline, which the job makes of them."""
    start = Image.new("RGB", (32, 32), "blue")
    former = model._module.pipeline
    with model.generate(PROMPT, image=start, strength=0.5, remote=remote, **settings(model)) as tracer:
        from diffusers import StableDiffusionImg2ImgPipeline

        parts = {**model.pipeline.components, "requires_safety_checker": False}
        model._module.pipeline = StableDiffusionImg2ImgPipeline(**parts)
        noise = [].save()
        for _step in tracer.iter[: STEPS // 2]:
            noise.append(model.unet.output[0])
        images = model.output.images.save()
    model._module.pipeline = former
    return {"noise": noise, "images": images}


@identical(SHAPES)
def test_weights_that_a_job_changes_are_its_own(model: Any, remote: Any) -> dict[str, Any]:
    with model.generate(PROMPT, remote=remote, **settings(model)):
        image = nnsight.save(model.output.images[0])
    if remote:
        with model.generate(PROMPT, remote=remote, **settings(model)):
            model.unet.conv_out.weight.data.zero_()
            spoiled = nnsight.save(model.output.images[0])
        assert spoiled != image
    with model.generate(PROMPT, remote=remote, **settings(model)):
        again = nnsight.save(model.output.images[0])
    assert again == image
    return {"image": image}


def test_a_resident_pipeline_is_afterwards_what_it_was(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    model, local = pipelines.client(SHAPES), pipelines.local(SHAPES)
    monkeypatch.setitem(huggingface._ID_CACHE, model.repo_id, RESIDENT)
    with local.generate(PROMPT, **settings(local)):
        expected = nnsight.save(local.output.images[0])
    for spoils in (False, True, False):
        with model.generate(PROMPT, remote=True, **settings(model)):
            if spoils:
                from diffusers import DPMSolverMultistepScheduler

                model.pipeline.scheduler = DPMSolverMultistepScheduler()
            image = nnsight.save(model.output.images[0])
        assert (image != expected) == spoils


def test_steps_are_told_while_it_runs(pipelines: Pipelines) -> None:
    model = pipelines.client(SHAPES)
    with interlace.connect(CONFIG.API.HOST) as mine:
        backend = mine.on(model, blocking=False)
        with model.generate(PROMPT, backend=backend, **settings(model)) as tracer:
            import time

            for _step in tracer.iter[:STEPS]:
                time.sleep(0.6)  # as long as a step of a large one
                noise = model.unet.output[0].save()
        told = [event for event in backend.job.events(DEADLINE) if isinstance(event, Progress)]
        assert [event.step for event in told] == [1, 2, 3, 4, 5, 6]
        assert {event.of for event in told} == {STEPS}
        assert backend.job.progress == told[-1]
        result = backend.job.result(DEADLINE)
        assert set(result) == {"noise"}


def test_jobs_that_wait_together_run_one_by_one(pipelines: Pipelines) -> None:
    """None is tried with others in one forward, which is for language models, and sent back from there."""
    model, local = pipelines.client(SHAPES), pipelines.local(SHAPES)
    with interlace.connect(CONFIG.API.HOST) as mine:
        jobs = []
        for seed in range(4):
            with model.trace(PROMPT, seed=seed, backend=(backend := mine.on(model, blocking=False))):
                noise = model.unet.output[0].save()
            jobs.append(backend.job)
        for seed, job in enumerate(jobs):
            states = [event.state for event in job.events(DEADLINE) if isinstance(event, StateChanged | Ended)]
            assert states == [JobState.QUEUED, JobState.LEASED, JobState.RUNNING, JobState.COMPLETED]
            with local.trace(PROMPT, seed=seed):
                noise = local.unet.output[0].save()
            assert torch.equal(job.result(DEADLINE)["noise"], noise)


async def test_a_stock_client_sees_the_steps(pipelines: Pipelines) -> None:
    model = pipelines.client(SHAPES)

    def send() -> Any:
        backend = AsyncRemoteBackend(model.to_model_key())
        with model.generate(PROMPT, backend=backend, **settings(model)):
            image = nnsight.save(model.output.images[0])
        return backend

    updates = [update async for update in await asyncio.to_thread(send)]
    lines = [(update.status.value, update.description) for update in updates[:-1]]
    assert ("RUNNING", f"Step 1 of {STEPS}") in lines
    assert ("RUNNING", f"Step {STEPS} of {STEPS}") in lines
    assert not [line for status, line in lines if status == "LOG"], "a progress bar is in the log"
    assert set(updates[-1]) == {"image"}


@pytest.mark.parametrize(
    ("repo_id", "wrong", "sentence"),
    [
        (FLUX, {"steps": 3}, "unexpected keyword argument 'steps'"),
        (XL, {"height": 33}, "`height` and `width` have to be divisible by 8 but are 33 and 32"),
        (SHAPES, {"callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inputs"),
        (SHAPES, {"guidance_scale": "high"}, "not supported between instances of 'str'"),
    ],
)
def test_a_wrong_setting_is_named(pipelines: Pipelines, repo_id: str, wrong: dict[str, Any], sentence: str) -> None:
    model = pipelines.client(repo_id)
    with pytest.raises(RemoteError) as caught:
        with model.generate(PROMPT, remote=True, **settings(model, **wrong)):
            images = model.output.images.save()
    assert sentence in str(caught.value)
    with model.generate(PROMPT, remote=True, **settings(model)):  # and the model is as it was
        images = model.output.images.save()
    assert len(images) == 1


def test_a_prompt_that_is_missing(pipelines: Pipelines) -> None:
    model = pipelines.client(SHAPES)
    with pytest.raises(RemoteError) as caught:
        with model.generate(remote=True, **settings(model)):
            images = model.output.images.save()
    assert "the trace got no input" in str(caught.value)


def test_an_error_names_the_line_of_the_block(pipelines: Pipelines) -> None:
    model = pipelines.client(SHAPES)
    with pytest.raises(RemoteError) as caught:
        with model.generate(PROMPT, remote=True, **settings(model)):
            model.unet.output[0][:] = torch.zeros(3, 3)  # of another shape
    assert "test_diffusion.py" in str(caught.value)
    assert "model.unet.output[0][:] = torch.zeros(3, 3)" in str(caught.value)


def test_the_page_runs_on_a_client_without_a_hub(
    server: tuple[running.Running, dict[str, Path]], pipelines: Pipelines
) -> None:
    """All that it needs to build the pipeline without weights comes from the gateway."""
    home = server[0].state_dir / "client"
    home.mkdir()
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    (home / "page.py").write_text(f"{code.replace('http://127.0.0.1:8000', server[0].url)}\n{DIGEST}")
    closed = "http://127.0.0.1:9"
    environ = {"HF_HOME": str(home / "hf"), "http_proxy": closed, "https_proxy": closed, "no_proxy": "127.0.0.1"}
    said = subprocess_client.run(server[0].url, home / "page.py", environ=environ)

    assert "10 torch.Size([2, 96, 4, 4]) (32, 32)" in said
    assert "torch.Size([1, 8, 8, 8]) (32, 32)" in said
    local = pipelines.local(SHAPES)
    with local.generate("a large red triangle", num_inference_steps=10, guidance_scale=3.0, seed=0):
        image = nnsight.save(local.output.images[0])
    assert f"False {hashlib.sha256(image.tobytes()).hexdigest()}" in said.splitlines()
    names = [name for _, _, names in os.walk(home / "hf") for name in names]
    assert "model_index.json" in names
    assert not [name for name in names if name.endswith((".safetensors", ".bin"))]


def test_the_example_draws_its_picture(server: tuple[running.Running, dict[str, Path]], home: Path) -> None:
    environ = {"HF_HOME": str(server[0].state_dir / "client" / "hf"), "MPLBACKEND": "agg"}
    out = server[0].state_dir / "out"
    said = subprocess_client.run(server[0].url, EXAMPLE, "--model", SHAPES, "--out", str(out), environ=environ)
    table = [line.split() for line in said.splitlines() if line.startswith("    ")]
    assert [row[0] for row in table] == ["never", *map(str, range(9, -1, -1))]
    assert (table[0][1], table[-1][1]) == ("red", "blue")
    assert (out / "denoising.png").stat().st_size > 10_000


def test_classes_in_place_of_a_prompt(pipelines: Pipelines) -> None:
    """nnsight has no word for them, so what is compared with is the pipeline itself."""
    local, client = pipelines.local(DIT), pipelines.client(DIT)
    seen: list[torch.Tensor] = []
    hook = local.pipeline.transformer.register_forward_hook(lambda *call: seen.append(call[2][0]))
    noise = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    expected = local.pipeline([207, 360], num_inference_steps=3, generator=noise, output_type="np").images
    hook.remove()
    with client.generate([207, 360], num_inference_steps=3, seed=5, output_type="np", remote=True) as tracer:
        steps = [].save()
        for _ in tracer.iter[:3]:
            steps.append(client.transformer.output[0])
        images = client.output.images.save()
    assert np.array_equal(images, expected)
    assert_identical({"steps": seen}, {"steps": list(steps)})
    with client.generate([207], num_inference_steps=1, seed=5, output_type="np", remote=True):
        client.transformer.output[0][:] = 0
        changed = client.output.images.save()
    assert not np.array_equal(changed[0], images[0])
