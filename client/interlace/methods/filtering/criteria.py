"""Words in captions, and scores of pictures by a CLIP, a denoiser or a small classifier."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from interlace.methods.base import Report
from interlace.methods.filtering.spec import Clip, Denoiser, ImageCriteria, Probe, TextCriteria
from interlace.methods.shared.denoising import diffusion
from interlace.methods.shared.images import Images
from interlace.methods.shared.judge import Judge
from interlace.methods.shared.sites import unwrapped
from interlace.protocol.errors import InvalidRequest

_WORD = re.compile(r"\w+")


class Words:
    """The phrases of text criteria, as words."""

    def __init__(self, criteria: TextCriteria) -> None:
        self._plurals = criteria.plurals
        self._phrases = [(phrase, words) for phrase in criteria.phrases if (words := words_of(phrase))]

    def found(self, caption: str) -> list[str]:
        """The phrases that a caption has, in the criteria's order."""
        words = words_of(caption)
        return [phrase for phrase, wanted in self._phrases if self._has(words, wanted)]

    def _has(self, words: Sequence[str], wanted: Sequence[str]) -> bool:
        last = {wanted[-1], *((f"{wanted[-1]}s", f"{wanted[-1]}es") if self._plurals else ())}
        return any(
            words[at + len(wanted) - 1] in last and list(words[at : at + len(wanted) - 1]) == list(wanted[:-1])
            for at in range(len(words) - len(wanted) + 1)
        )


def words_of(text: str) -> list[str]:
    """Letters and digits, in small letters; what stands between them goes."""
    return _WORD.findall(text.casefold().replace("_", " "))


class Scorer(Protocol):
    """What gives each image a score for each concept, [n, concepts]. Another one is another class like those below."""

    def scores(self, images: Images, report: Report) -> Tensor: ...


@contextmanager
def scorer(model: Any, criteria: ImageCriteria, batch: int, report: Report) -> Iterator[Scorer]:
    """The scorer of some criteria. Raises InvalidRequest where the model is none for it, InvalidArtifact."""
    names = [one.name for one in criteria.wanted]
    if isinstance(criteria.by, Probe):
        yield ByProbe(Judge.of(report.open(criteria.by.probe, "probe")), names)
    elif isinstance(criteria.by, Denoiser):
        with diffusion.opened(model, report) as pipeline:
            yield ByDenoiser(pipeline, criteria.by, names, batch)
    else:
        yield ByClip(model, criteria.by, names, batch)


class ByProbe:
    def __init__(self, judge: Judge, names: Sequence[str]) -> None:
        self._judge, self._names = judge, names

    def scores(self, images: Images, report: Report) -> Tensor:
        return torch.stack([self._judge.chance(images.pixels, name) for name in self._names], -1)


class ByClip:
    def __init__(self, model: Any, by: Clip, names: Sequence[str], batch: int) -> None:
        self._module: Any = unwrapped(model)
        both: Any = getattr(model, "processor", None)  # some tasks of transformers have the two parts alone
        self._tokenizer: Any = getattr(model, "tokenizer", None) or getattr(both, "tokenizer", None)
        self._pictures: Any = getattr(model, "image_processor", None) or getattr(both, "image_processor", None)
        if not hasattr(self._module, "get_image_features") or self._tokenizer is None or self._pictures is None:
            raise InvalidRequest(
                f"The scorer `clip` needs a hosted CLIP (task zero-shot-image-classification); this model is a "
                f"{type(self._module).__name__}. On a diffusion pipeline, use `denoiser` or `probe`."
            )
        self._texts, self._batch = [by.template.replace("{}", name) for name in names], batch

    def scores(self, images: Images, report: Report) -> Tensor:
        device = next(self._module.parameters()).device
        with torch.no_grad():
            words = self._tokenizer(self._texts, return_tensors="pt", padding=True).to(device)
            told = _direction(self._module.get_text_features(**words))
            report.count(forwards=1, tokens=words["input_ids"].numel())
            parts = []
            for some in images.pixels.split(self._batch):
                seen = self._pictures([Image.fromarray(one.numpy()) for one in some], return_tensors="pt")
                features = self._module.get_image_features(pixel_values=seen["pixel_values"].to(device))
                parts.append((100 * _direction(features) @ told.T).float().cpu())
                report.count(forwards=1, tokens=len(some))
                report.progress(sum(map(len, parts)), len(images))
        return torch.cat(parts)


class ByDenoiser:
    def __init__(self, pipeline: "diffusion.Pipeline", by: Denoiser, names: Sequence[str], batch: int) -> None:
        self._pipeline, self._by, self._batch = pipeline, by, batch
        self._texts = [by.template.replace("{}", name) for name in names]

    def scores(self, images: Images, report: Report) -> Tensor:
        pipeline = self._pipeline
        told = pipeline.encode_nothing(1).beside(pipeline.encode_prompts(self._texts))
        parts = []
        for rows in torch.arange(len(images)).split(self._batch):
            latents = pipeline.encode_images(images.pixels[rows]).mean  # of all at once it would hold too much
            errors = torch.stack([self._error(latents, told[n : n + 1]) for n in range(len(self._texts) + 1)], -1)
            parts.append(100 * (1 - errors[:, 1:] / errors[:, :1]))
            report.progress(int(rows[-1]) + 1, len(images))
        return torch.cat(parts)

    def _error(self, latents: Tensor, prompt: "diffusion.Prompts") -> Tensor:
        """The mean squared error of each image, [n], over the same noise for every one."""
        pipeline, found = self._pipeline, []
        dice = torch.Generator().manual_seed(pipeline.report.seed)
        told = prompt.repeated(len(latents))
        for level in self._by.levels:
            t = torch.full((len(latents),), int(level * pipeline.timesteps))
            for _ in range(self._by.draws):
                noise = torch.randn(latents[:1].shape, generator=dice).to(latents).expand_as(latents)
                said = pipeline.predict(pipeline.noised(latents, noise, t), t, told)
                found.append((said - pipeline.target(latents, noise, t)).float().square().mean((1, 2, 3)).cpu())
        return torch.stack(found).mean(0)


def _direction(features: Any) -> Tensor:
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)
