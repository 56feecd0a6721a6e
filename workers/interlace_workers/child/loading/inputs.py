"""The smallest inputs that a hosted model may take, whatever its family."""

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from PIL import Image

_TOKENS = 8
_PIXELS = 32  # a side; the model's own processor makes the size of it that the model takes
_SECONDS = 0.5  # of sound


def smallest(model: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of ``model.trace``, most likely ones first; a model of a rare kind takes none of them.

    A vision-language model is given text alone: what it sees in an image are hundreds of tokens.
    """
    tokens = torch.zeros((1, _TOKENS), dtype=torch.long)
    decodes = getattr(model._module.config, "is_encoder_decoder", False)
    for ends in ({"decoder_input_ids": tokens[:, :1]}, {}) if decodes else ({},):
        if model.feature_extractor is not None:
            yield (_sound(model.feature_extractor),), ends
        if model.image_processor is None or model.tokenizer is not None:
            yield (tokens,), ends  # a checkpoint without preprocessors takes them, too
        if model.image_processor is not None:
            yield (_image(),), ends
    if model.image_processor is not None:
        yield (_image(),), {"candidate_labels": ["a"]}


def preprocess(model: Any) -> None:
    """Have the model's processors do their work once, which imports what they need. Raises whatever they raise."""
    images = model.image_processor or getattr(model.processor, "image_processor", None)
    if images is not None:
        images(_image(), return_tensors="pt")


def _image() -> Image.Image:
    return Image.new("RGB", (_PIXELS, _PIXELS))


def _sound(extractor: Any) -> Any:
    return numpy.zeros(int(_SECONDS * extractor.sampling_rate), dtype=numpy.float32)
