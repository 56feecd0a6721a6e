"""The transformers task `text-to-text`: an encoder-decoder with its language-model head.

transformers 5 has no task for one: T5 can be opened for its hidden states only, BART for filling masks. Both sides of
a remote trace need to know the task; a server of ours does.
"""

from typing import Any

from transformers import AutoModelForSeq2SeqLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

TEXT_TO_TEXT = "text-to-text"


class TextToTextPipeline(Pipeline):  # type: ignore[misc]
    """A text in, the text that the model generates for it out: ``[{"generated_text": ...}]``.

    Keywords of a call are those of ``generate``.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(self, **generate: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, generate, {}

    def preprocess(self, text: str) -> Any:
        return self.tokenizer(text, return_tensors="pt")

    def _forward(self, encoding: Any, **generate: Any) -> Any:
        return self.model.generate(**encoding, **generate)

    def postprocess(self, ids: Any) -> list[dict[str, str]]:
        return [{"generated_text": text} for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def add_tasks() -> None:
    """Have transformers know the task `text-to-text` in this process. May be called again."""
    if TEXT_TO_TEXT not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TEXT_TO_TEXT, pipeline_class=TextToTextPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
        )
