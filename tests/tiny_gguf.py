"""A tiny Llama, and the GGUF that llama.cpp's own converter would make of it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Random weights, large enough for every part to matter."""
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 5000.0, "rms_norm_eps": 3e-6}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": 300, "initializer_range": 0.2}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(shape | heads | special | {"tie_word_embeddings": True} | changes))).eval()


def _interleaved(weight: torch.Tensor, heads: int) -> NDArray[np.float32]:
    """The row order that llama.cpp's own converter gives to q and k."""
    halves = weight.detach().numpy().reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _vocabulary() -> tuple[list[str], list[str]]:
    """Byte-level tokens, specials first, digits among them, and a few merges."""
    alphabet = list(pre_tokenizers.ByteLevel.alphabet())
    merges = ["t h", "th e", "Ġ the", "1 8", "i n"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(alphabet)]
    tokens += [merge.replace(" ", "") for merge in merges]
    return tokens + [f"<unused{number}>" for number in range(300 - len(tokens))], merges


def write_gguf(model: LlamaForCausalLM, path: Path, architecture: str = "llama", pre: str = "smollm") -> Path:
    config = model.config
    tokens, merges = _vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}")
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        writer.add_tensor(_name(name), _interleaved(weight, heads) if heads else weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(theirs: str) -> str:
    parts = theirs.removesuffix(".weight").split(".")
    block = f"blk.{parts[2]}." if "layers" in parts else ""
    return f"{block}{_NAMES['.'.join(parts[3:] if block else parts)]}.weight"
