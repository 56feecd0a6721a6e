"""A source's catalogue entry."""

import json

from interlace.protocol.model import ModelKey
from interlace_state.models import ModelCard
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import described, pipeline, quantized, weights
from interlace_workers.sources.source import Source

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def card(source: Source, key: ModelKey, model: ModelConfig) -> ModelCard:
    """What is known of the model before it is loaded; its size is that of the weights as they will be held.

    Raises SourceError for damaged files.
    """
    path = source.path / (pipeline.INDEX if source.is_pipeline else "config.json")
    with weights.reading(path):
        config = json.loads(path.read_text())
        stored = dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        if source.is_pipeline:
            config["components"] = pipeline.configs(source.path)
    if source.is_pipeline or model.dtype != "auto":
        dtype = dtype_of(source, model)
    n_params = source.n_params or weights.n_params(source.path)
    if n_params is None and weights.files(source.path):
        n_params = described.n_params(source.path, key)
    width = _BYTES.get(dtype)
    as_stored = source.size_bytes * (width or 1) // (_BYTES.get(stored) or width or 1)
    size_bytes = n_params * width if n_params is not None and width is not None else as_stored
    if model.quantization is not None and (shapes := weights.shapes(source.path)) is not None:
        size_bytes = quantized.size_bytes(shapes, config, model.quantization)
    return ModelCard(
        key=key,
        commit=source.commit,
        dtype=model.quantization or dtype,
        config=config,
        trusted=model.trusted if model.executor == "resident" else None,
        n_params=n_params,
        size_bytes=size_bytes,
    )


def dtype_of(source: Source, model: ModelConfig) -> str:
    """The type to load weights in: as configured, but for a pipeline never `auto`, which diffusers has not.

    Raises SourceError for damaged files.
    """
    if model.dtype == "auto" and source.is_pipeline:
        return weights.dtype(source.path) or "float32"
    return model.dtype
