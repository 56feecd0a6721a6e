"""Promise: after `interlace.add_tasks()` transformers has a pipeline for encoder-decoders that write."""

from pathlib import Path

import tiny_families
from transformers import T5ForConditionalGeneration, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

import interlace

TEXT = "The Eiffel Tower is in Paris."


def test_a_text_goes_in_and_a_text_comes_out(families: Path) -> None:
    interlace.add_tasks()
    interlace.add_tasks()
    assert "text-to-text" in PIPELINE_REGISTRY.get_supported_tasks()
    write = pipeline("text-to-text", model=tiny_families.T5)
    assert type(write.model) is T5ForConditionalGeneration
    ids = write.model.generate(**write.tokenizer(TEXT, return_tensors="pt"), max_new_tokens=3, do_sample=False)
    expected = write.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert write(TEXT, max_new_tokens=3, do_sample=False) == [{"generated_text": expected}]
    assert len(write([TEXT, TEXT], max_new_tokens=3)) == 2
