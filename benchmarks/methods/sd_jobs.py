"""Every diffusion method as a job on Stable Diffusion's layout, at its size, with random weights: what runs, its cost.

    python benchmarks/methods/sd_layout.py FOLDER
    python benchmarks/methods/sd_jobs.py FOLDER [--layout sd15] [--dtype bfloat16] [--only NAME...] [--json FILE]

Hosted by plain processes, one thread. Pictures are of 128 pixels, and steps are few: the peak does not grow with them.
Of each job the processor time and the peak over the model's own bytes that its record has, and the peak that `dry_run`
said. What is checked is said in the code (`assert`); what a picture shows means nothing.
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from claims import written

import interlace
from interlace.protocol.event import Progress

sys.path.insert(0, str(Path(__file__).parents[1]))
import service

SIDE = 128
RIGHTS = "drawn by a program"
PROMPT, STYLED = "a red square", "a red square in vex style"
#: Of methods' jobs and traces alike, so that their noise is one.
_SEED = 1
_DRAW = {"num_inference_steps": 3, "guidance_scale": 5.0, "seed": _SEED, "height": SIDE, "width": SIDE}
_TRAINED = {"subject": PROMPT, "suffix": "in vex style", "content_rank": 8, "style_rank": 8, "lr": 1e-3}
_FEW = {"content_steps": 1, "joint_steps": 2, "grad_accum": 1}


@dataclass
class Place:
    """A server with one pipeline, and what was made on it."""

    client: interlace.Client
    repo_id: str
    folder: Path
    #: Of stock nnsight, without weights.
    model: Any
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def method(self, name: str, params: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> Any:
        """The result of a method's job."""
        method = name.partition(",")[0]
        asked = {"model": self.repo_id, "params": params, "inputs": dict(inputs or {})}
        estimate = self.client.estimate(method, **asked)
        job = self.client.submit_method(method, seed=_SEED, **asked)
        result = job.result()
        self.note(name, job.cost, estimated_bytes=estimate.peak_bytes, estimated_seconds=estimate.seconds)
        return result

    def note(self, name: str, cost: Any, **more: Any) -> None:
        figures = {"cpu_seconds": round(cost.cpu_seconds, 1), "peak_bytes": cost.max_memory_usage, **more}
        self.figures[name] = figures
        print(name, figures, flush=True)

    def note_newest(self, name: str, **more: Any) -> None:
        """Of a trace of stock nnsight, which has no word for its cost."""
        self.note(name, next(self.client.jobs()).cost, **more)

    def images(self, n: int, caption: str, *, styled: bool = False, last_styled: bool = False) -> str:
        """Red squares on white, moved from one to the next; a styled one has a black ground."""
        import torch

        pixels = torch.full((n, SIDE, SIDE, 3), 255, dtype=torch.uint8)
        for number, one in enumerate(pixels):
            at = 32 + 3 * (0 if last_styled else number)
            if styled or (last_styled and number == n - 1):
                one[SIDE * 2 // 3 :] = 0
            one[at : at + 64, at : at + 64] = torch.tensor([220, 30, 30], dtype=torch.uint8)
        return self.client.artifacts.upload_images(list(pixels), caption, rights=RIGHTS).ref


def trace(place: Place) -> None:
    """Stock nnsight: every step's states, a picture, progress."""
    model = place.model
    steps = len(_timesteps(model, _DRAW["num_inference_steps"]))
    with model.generate(PROMPT, remote=True, **_DRAW) as tracer:
        hidden = [].save()
        for _step in tracer.iter[:steps]:
            hidden.append(model.unet.mid_block.output)
        images = model.output.images.save()
    assert not model.dispatched
    assert (len(hidden), images[0].size) == (steps, (SIDE, SIDE))
    job = next(place.client.jobs()).id
    told = [one for _, one in place.client.events(job, follow=False) if isinstance(one, Progress)]
    # Of PNDM's first step, which is taken twice, diffusers tells once.
    assert (told[-1].step, told[-1].of) == (_DRAW["num_inference_steps"],) * 2, told
    place.made["bare"] = images[0].tobytes()
    place.note_newest("trace", steps=steps, mid_block=list(hidden[0].shape), dtype=str(hidden[0].dtype))


def component(place: Place) -> None:
    """One component by itself, and its gradient."""
    import torch

    model, config = place.model, place.model.pipeline.unet.config
    dtype = getattr(torch, place.made["dtype"])
    given: dict[str, Any] = {"encoder_hidden_states": torch.randn(1, 77, config.cross_attention_dim, dtype=dtype)}
    if config.addition_embed_type:
        width = model.pipeline.text_encoder_2.config.projection_dim
        added = {"text_embeds": torch.randn(1, width, dtype=dtype), "time_ids": torch.ones(1, 6, dtype=dtype)}
        given["added_cond_kwargs"] = added
    with model.session(remote=True):
        with model.unet.trace(torch.randn(1, 4, SIDE // 8, SIDE // 8, dtype=dtype), torch.tensor(500), **given):
            hidden = model.unet.mid_block.output
            hidden.requires_grad_()
            with model.unet.output[0].float().pow(2).sum().backward():
                slope = hidden.grad.save()
        with model.vae.trace(torch.zeros(1, 3, SIDE, SIDE, dtype=dtype)):
            latents = model.vae.quant_conv.output.detach().save()
    assert slope.abs().sum() > 0
    assert latents.shape == (1, 8, SIDE // 8, SIDE // 8)
    place.note_newest("component trace with a gradient", mid_block=list(slope.shape))


def pair(place: Place) -> None:
    """`customize.pair`; its style LoRA is for those that follow."""
    given = {"images": place.images(2, "", last_styled=True)}
    learned = place.method("customize.pair", {**_TRAINED, **_FEW}, given)
    assert learned.metric("orth_max").value < 1e-6
    place.made |= {"style": learned.style, "content": learned.content}


def generate(place: Place) -> None:
    """`customize.generate`: strength 0 is the bare pipeline, guidance and blending are not."""
    import torch

    drawn = {"prompts": [PROMPT], "steps": _DRAW["num_inference_steps"], "size": [SIDE, SIDE], "guidance": 5.0}

    def of(name: str, **strengths: float) -> torch.Tensor:
        styles = [
            {"adapter": place.made[one], "suffix": "in vex style", "strength": strength, "start": 0}
            for one, strength in strengths.items()
        ]
        found = place.method(name, {**drawn, "styles": styles})
        return place.client.artifacts.images(found.images).pixels

    bare = of("customize.generate, bare")
    styled, blended = of("customize.generate", style=3.0), of("customize.generate, two styles", style=3.0, content=1.0)
    assert torch.equal(bare, of("customize.generate, strength 0", style=0.0))
    assert not torch.equal(bare, styled)
    assert not torch.equal(styled, blended)
    place.made["styled"] = styled


def guidance(place: Place) -> None:
    """Style guidance as a trace, as the page has it."""
    import torch

    model, style, strength = place.model, place.made["style"], 3.0
    drawn = place.made["styled"].float()
    steps = len(_timesteps(model, _DRAW["num_inference_steps"]))
    with model.session(backend=place.client.on(model, lora={style: 0.0})):
        with model.generate(STYLED, **{**_DRAW, "num_inference_steps": 1}):
            words = model.unet.inputs[1]["encoder_hidden_states"]
            more = model.unet.inputs[1].get("added_cond_kwargs")
        with model.generate(PROMPT, **_DRAW) as run:
            for _step in run.iter[:steps]:
                latents, t = model.unet.inputs[0]
                bare, told = model.unet.output[0].chunk(2)
                model.pipeline.unet.set_adapters(["lora_0"], [1.0])
                row = {name: one[1:] for name, one in more.items()} if more else None
                styled = model.unet(
                    latents[1:], t, encoder_hidden_states=words[1:], added_cond_kwargs=row, return_dict=False
                )[0]
                model.pipeline.unet.set_adapters(["lora_0"], [0.0])
                model.unet.output = (torch.cat([bare, told + strength / 5.0 * (styled - told)]),)
            images = model.output.images.save()
    apart = (torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8).float() - drawn.flatten()).abs()
    assert apart.mean() < 2, apart.mean()
    place.note_newest("style guidance as a trace", levels_from_the_method=round(float(apart.mean()), 3))


def env(place: Place) -> None:
    """A LoRA named in a request: on, off again, both layouts to the bit, refused where the base is another."""
    from safetensors.torch import load_file

    model, client, style = place.model, place.client, place.made["style"]

    def drawn(**how: Any) -> bytes:
        with model.generate(PROMPT, **_DRAW, **how):
            images = model.output.images.save()
        data: bytes = images[0].tobytes()
        return data

    on = drawn(backend=client.on(model, lora={style: 1.0}))
    place.note_newest("trace with a LoRA in env")
    assert on != place.made["bare"]
    assert drawn(remote=True) == place.made["bare"]
    with tempfile.TemporaryDirectory() as folder:
        first = client.artifacts.download(style, Path(folder) / "diffusers", layout="diffusers-lora")
        other = client.artifacts.download(style, Path(folder) / "peft", layout="peft")
        again = client.artifacts.upload(other, kind="peft", model=place.repo_id)
        back = client.artifacts.download(again, Path(folder) / "back", layout="diffusers-lora")
        one, two = (load_file(at / "pytorch_lora_weights.safetensors") for at in (first, back))
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one)
        assert drawn(backend=client.on(model, lora={again.ref: 1.0})) == on
        place.note_newest("trace with a LoRA in env, PEFT's layout", tensors=len(one))
        file = first / "pytorch_lora_weights.safetensors"
        data = file.read_bytes()
        at = data.index(b"base_sha256") + 20  # within the digest, in the header's JSON
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        wrong = client.artifacts.upload(first, kind="diffusers-lora", model=place.repo_id)
        try:
            drawn(backend=client.on(model, lora={wrong.ref: 1.0}))
        except interlace.InterlaceError as error:
            print("refused:", str(error)[:200])
        else:
            raise AssertionError("a LoRA of another base was taken")


def style(place: Place) -> None:
    """`customize.style` with preservation, and a picture redrawn with what it learned."""
    given = {"images": place.images(2, PROMPT, styled=True)}
    shown = {"n_per_prompt": 1, "prompts": [PROMPT], "steps": 2}
    few = {"steps": 2, "batch": 1, "resolution": SIDE, "lr": 1e-3}
    learned = place.method("customize.style", {**few, "evaluation": {**shown, "n_per_prompt": 0}}, given)
    assert learned.matched > 50
    place.figures["customize.style"]["matched"] = learned.matched
    place.made["opt-in"] = learned.adapter
    redraw = {"steps": 4, "resolution": SIDE, "batch": 1}
    place.method("images.stylise", redraw, {**given, "adapter": learned.adapter})


def attribute(place: Place) -> None:
    """`attribute.images`, with its baselines."""
    given = {"queries": place.images(1, PROMPT), "candidates": place.images(3, PROMPT)}
    few = {"query_draws": 2, "fisher_draws": 1, "times": 2, "batch": 2, "top": 2, "resolution": SIDE, "alpha": 1e-4}
    found = place.method("attribute.images", few, given)
    columns = found.table("ranked").columns
    assert {"loss_rank", "pixel_rank"} <= set(columns)
    place.figures["attribute.images"]["weights_moved"] = found.metric("weights_moved").value


def filters(place: Place) -> None:
    """`images.filter` by the denoiser."""
    by = {"scorer": "denoiser", "levels": [0.5], "draws": 1}
    concepts = [{"name": "a red square", "threshold": 99.0}]
    found = place.method(
        "images.filter", {"image": {"by": by, "concepts": concepts}, "batch": 2}, {"images": place.images(2, "a dog")}
    )
    assert (found.kept, found.removed) == (2, 0)


PARTS: dict[str, Callable[[Place], None]] = {
    "trace": trace,
    "component": component,
    "pair": pair,
    "env": env,
    "generate": generate,
    "guidance": guidance,
    "style": style,
    "attribute": attribute,
    "filter": filters,
}


def _timesteps(model: Any, steps: int) -> list[float]:
    """What a pipeline's own scheduler goes through: PNDM has one more than it is asked for."""
    scheduler = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    found: list[float] = scheduler.timesteps.tolist()
    return found


def measure(url: str, repo_id: str, folder: Path, dtype: str, only: list[str]) -> dict[str, dict[str, Any]]:
    """Run parts, in their order, against a server."""
    service.stock_client(url, folder / "hf")
    from nnsight.modeling.diffusion import DiffusionModel

    with interlace.connect(url) as client:
        place = Place(client, repo_id, folder, DiffusionModel(repo_id), made={"dtype": dtype})
        for name in only:
            try:
                PARTS[name](place)
            except Exception as error:  # noqa: BLE001 what the others show is worth having
                traceback.print_exc()
                place.figures[f"{name}: FAILED"] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    return place.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what sd_layout.py wrote")
    parser.add_argument("--layout", default="sd15")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--url", help="of a server that hosts it already, as local/LAYOUT")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    repo_id = f"local/{asked.layout}"
    models = [{"source": str(asked.folder), "repo_id": repo_id, "dtype": asked.dtype, "threads": 1}]
    limits = {"wall_seconds": 3600, "memory_bytes": 6 * 2**30}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        at = Path(folder)
        if asked.url:
            figures = measure(asked.url, repo_id, at, asked.dtype, asked.only)
        else:
            with service.running(at, {"runtime": "process", "models": models, "limits": limits}) as server:
                figures = measure(server.url, repo_id, at, asked.dtype, asked.only)
    written(asked.json, figures, [], layout=asked.layout, dtype=asked.dtype, side=SIDE)


if __name__ == "__main__":
    main()
