"""A GGUF becomes a Hugging Face directory that computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from interlace_workers.sources import llama_gguf
from interlace_workers.sources.source import SourceError


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"head_dim": 32, "num_key_value_heads": 4}])
def test_a_converted_gguf_computes_what_its_model_computes(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = llama(**changes)
    llama_gguf.convert(write_gguf(model, tmp_path / "m.gguf"), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert again.config.rms_norm_eps == 3e-6
    assert again.config.rope_parameters["rope_theta"] == 5000.0
    ids = torch.arange(3, 43).reshape(1, -1)
    # Within float16's rounding of weights; without the q/k reordering the difference is above 1.
    torch.testing.assert_close(logits(again, ids), logits(model, ids), atol=0.05, rtol=0.01)


def test_a_converted_tokenizer_splits_digits_and_knows_special_tokens(tmp_path: Path) -> None:
    llama_gguf.convert(write_gguf(llama(), tmp_path / "m.gguf"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("in 18") == ["in", "Ġ", "1", "8"]
    assert tokenizer.decode(tokenizer("Tower, é 1889!").input_ids) == "Tower, é 1889!"
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = write_gguf(llama(), tmp_path / "m.gguf", architecture="gemma3")
    with pytest.raises(SourceError, match="architecture `gemma3`; Interlace converts `llama` only"):
        llama_gguf.convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_pre_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    file = write_gguf(llama(), tmp_path / "m.gguf", pre="deepseek-llm")
    with pytest.raises(SourceError, match="pre-tokenizer `deepseek-llm`"):
        llama_gguf.convert(file, tmp_path / "out")


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not at all" * 10)
    with pytest.raises(SourceError, match="not a readable GGUF"):
        llama_gguf.convert(tmp_path / "m.gguf", tmp_path / "out")
