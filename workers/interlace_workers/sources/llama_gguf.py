"""Convert a Llama-architecture GGUF into a plain Hugging Face directory: ``python -m ... GGUF FOLDER``."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from interlace_workers.sources.source import SourceError

_CONTROL = 3  # llama.cpp's token type for special tokens

# What llama.cpp calls a tensor -> what transformers calls it.
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Metadata:
    """A GGUF's key-value pairs. A missing key without a default raises SourceError."""

    def __init__(self, reader: gguf.GGUFReader, name: str) -> None:
        self._fields = reader.fields
        self._name = name

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise SourceError(f"{self._name} lacks the GGUF key `{key}`: it is not a complete Llama checkpoint.")
        return self._fields[key].contents()


def convert(source: Path, target: Path) -> None:
    """Write ``config.json``, tokenizer and ``model.safetensors`` of the GGUF ``source`` into the folder ``target``.

    Raises SourceError where the file is no GGUF, or holds something that this does not convert faithfully.
    """
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, OverflowError) as error:
        raise SourceError(f"{source.name} is not a readable GGUF file: {error}") from None
    metadata = Metadata(reader, source.name)
    _refuse_others(metadata, source.name)
    config = _config(metadata)
    weights = dict(_weights(reader, config, source.name))
    config["tie_word_embeddings"] = "lm_head.weight" not in weights

    target.mkdir(parents=True, exist_ok=True)
    _write_json(target / "config.json", config)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(target / "generation_config.json", special)
    _write_tokenizer(metadata, target, source.name)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _refuse_others(metadata: Metadata, name: str) -> None:
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise SourceError(
            f"{name} is a GGUF of the architecture `{architecture}`; Interlace converts `llama` only. "
            "Host the model from its Hugging Face repository instead: `interlace up --model ORG/NAME`."
        )
    for key in ("llama.rope.scaling.type", "llama.expert_count"):
        if metadata.get(key) not in (None, "none", 0):
            raise SourceError(
                f"{name} sets `{key}` to {metadata[key]!r}, which Interlace does not convert. "
                "Host the model from its Hugging Face repository instead: `interlace up --model ORG/NAME`."
            )


def _config(metadata: Metadata) -> dict[str, Any]:
    hidden, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    eos = metadata["tokenizer.ggml.eos_token_id"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata.get("llama.attention.key_length", hidden // heads),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": eos,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id", eos),
        "dtype": "bfloat16",
    }


def _shortest(value: float) -> float:
    """The decimal that was meant: GGUF holds 1e-5 as the 32-bit float 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _weights(reader: gguf.GGUFReader, config: dict[str, Any], name: str) -> Iterator[tuple[str, torch.Tensor]]:
    wanted = _names(config["num_hidden_layers"])
    for tensor in reader.tensors:
        if tensor.name not in wanted:
            raise SourceError(f"{name} holds the tensor `{tensor.name}`, which a plain Llama does not have.")
        array = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if ".attn_q." in tensor.name:
            array = _undo_interleaving(array, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            array = _undo_interleaving(array, config["num_key_value_heads"])
        # float16 keeps 3 bits more than bfloat16 at the same size and load time (1.0 CPU s): SmolLM2's float32 logits
        # are within 0.035 of those of a float32 file, which is twice as large and saves 0.5 CPU s (bfloat16: 0.15).
        yield wanted.pop(tensor.name), torch.from_numpy(np.ascontiguousarray(array)).to(torch.float16)
    missing = sorted(wanted.keys() - {"output.weight"})
    if missing:
        raise SourceError(f"{name} lacks {len(missing)} tensors of its model, `{missing[0]}` among them.")


def _names(layers: int) -> dict[str, str]:
    blocks = {
        f"blk.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(layers)
        for ours, theirs in _BLOCK.items()
    }
    return _ENDS | blocks


def _undo_interleaving(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows in transformers' order, ``[heads * head_dim, hidden]``.

    For RoPE, llama.cpp pairs rows 2i and 2i+1 of a head; transformers pairs i and i + head_dim/2.
    """
    out, hidden = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, hidden).swapaxes(1, 2).reshape(out, hidden)


def _write_tokenizer(metadata: Metadata, target: Path, name: str) -> None:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(metadata, name)
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A {tokens[bos]} $B", special_tokens=[(tokens[bos], bos)]
        )
    tokenizer.save(str(target / "tokenizer.json"))

    settings = {
        # The generic class takes tokenizer.json as it is; GPT2Tokenizer would rebuild it without digit splitting.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "unk_token": tokens[metadata.get("tokenizer.ggml.unknown_token_id", eos)],
        "pad_token": tokens[metadata.get("tokenizer.ggml.padding_token_id", eos)],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    template = metadata.get("tokenizer.chat_template")
    _write_json(target / "tokenizer_config.json", settings | ({"chat_template": template} if template else {}))


def _pre_tokenizer(metadata: Metadata, name: str) -> pre_tokenizers.PreTokenizer:
    kind, split = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre", "default")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "gpt2" and split == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if kind == "gpt2" and split in ("gpt-2", "default"):
        return byte_level
    raise SourceError(
        f"{name} has the tokenizer `{kind}` with the pre-tokenizer `{split}`; Interlace converts `gpt2` with `smollm` "
        "or `gpt-2` only. Host the model from its Hugging Face repository instead: `interlace up --model ORG/NAME`."
    )


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def main(arguments: list[str]) -> int:
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
