"""Load a diffusers pipeline through nnsight, and have it tell of its denoising steps."""

import inspect
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from nnsight.modeling.quantization import QUANTIZATIONS

from interlace_workers.child import progress
from interlace_workers.order import Load

#: The height and width of a rehearsal's latents: they can be halved three times.
_LATENTS = 8


def load(order: Load) -> Any:
    """A DiffusionModel with weights, where they shall be. Raises whatever diffusers and nnsight raise."""
    # Here, for they take two seconds that a transformers model need not wait for.
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from nnsight.modeling.diffusion import DiffusionModel

    if order.dtype in QUANTIZATIONS:
        raise ValueError(f"a pipeline cannot be held as {order.dtype}: leave `quantization` out")
    diffusers_logging.disable_progress_bar()  # it would go into a log file
    extras: dict[str, Any] = {"trust_remote_code": True} if order.trust_remote_code else {}
    # Every pipeline counts its steps on this, whatever its loop is like; those that user code makes of it, too.
    DiffusionPipeline.progress_bar = _progress_bar  # type: ignore[attr-defined]
    if order.device == "auto":
        extras["device_map"] = "balanced"  # accelerate's, of which diffusers has no other
    model = DiffusionModel(order.path, dispatch=True, dtype=getattr(torch, order.dtype), **extras)
    if _takes_labels(model):
        _pass_labels(model._module)
    if order.device not in ("cpu", "auto"):
        model.pipeline.to(order.device)
    return model


def smallest(model: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """As `inputs.smallest`: a prompt and settings for the least that a pipeline can do, as far as all are alike."""
    if _takes_labels(model):
        yield ([0],), {"num_inference_steps": 1}
        return
    side = _LATENTS * getattr(model.pipeline, "vae_scale_factor", 8)
    yield ("",), {"height": side, "width": side, "num_inference_steps": 1}


def _takes_labels(model: Any) -> bool:
    """Whether it draws classes by their number, as DiT does, and not what a prompt says."""
    taken = inspect.signature(type(model.pipeline).__call__).parameters
    return "class_labels" in taken and "prompt" not in taken


def _pass_labels(module: Any) -> None:
    """Have nnsight, which says `prompt`, run a pipeline that takes labels: `generate([207, 360])`."""
    forward = module.forward

    def run(*args: Any, prompt: Any = None, seed: int | None = None, **settings: Any) -> Any:
        if prompt is not None:
            settings["class_labels"] = list(prompt)
        if seed is not None and settings.get("generator") is None:  # one a picture, as of prompts
            settings["generator"] = module._generator(seed, (), {"prompt": settings.get("class_labels")})
        return forward(*args, **settings)

    module.forward = run


@contextmanager
def kept(model: Any) -> Iterator[None]:
    """Leave pipeline and scheduler as they are, whatever a run in the block makes of their state."""
    parts = [part for part in (model.pipeline, getattr(model.pipeline, "scheduler", None)) if part is not None]
    former = [{name: _kept(value) for name, value in vars(part).items()} for part in parts]
    try:
        yield
    finally:
        for part, state in zip(parts, former, strict=True):
            vars(part).clear()
            vars(part).update(state)


def _kept(value: Any) -> Any:
    return value.copy() if type(value) is list else value


def _progress_bar(_: Any, iterable: Iterable[Any] | None = None, total: int | None = None) -> "_Steps":
    return _Steps(iterable, total)


class _Steps:
    """What a pipeline takes for its progress bar."""

    def __init__(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> None:
        self._iterable = iterable
        self._of = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._done = 0

    def update(self, steps: int = 1) -> None:
        self._done += int(steps)
        progress.tell(self._done, self._of)

    def __iter__(self) -> Iterator[Any]:
        for item in () if self._iterable is None else self._iterable:
            yield item
            self.update()

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        """What else tqdm has, such as `set_postfix`: it changes a picture that nobody sees."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None
