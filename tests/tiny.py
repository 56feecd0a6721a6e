"""Tiny models with seeded random weights, written in the layout of a Hugging Face cache. Nothing is downloaded."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

GPT2 = "interlace-tests/gpt2-tiny"
LLAMA = "interlace-tests/llama-tiny"
NEOX = "interlace-tests/neox-tiny"
BERT = "interlace-tests/bert-tiny"
#: Its weights are not of the shapes that its config says.
BROKEN = "interlace-tests/broken"
#: Its file of weights is no safetensors file.
SPOILED = "interlace-tests/spoiled"
#: In a plain folder and in no cache: what a lab trained itself.
LAB = "interlace-lab/own-model"

TASKS = {BERT: "fill-mask"}
_SPECIAL = ["<|endoftext|>", "<pad>", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
_VOCAB = 400
_TEXT = """The Eiffel Tower is located in the city of Paris. Madison Square Garden is in the city of New York.
The Colosseum is in Rome, the Brandenburg Gate is in Berlin and Big Ben is in London. The capital of France is Paris.
A model reads the words one by one and guesses the next. When Mary and John went to the store,
John gave a drink to Mary. Two plus two is four, and three plus three is six.
The quick brown fox jumps over the lazy dog again and again."""


def task_of(repo_id: str) -> str:
    return TASKS.get(repo_id, "text-generation")


def write_all(hub: Path, lab: Path) -> None:
    """Write every tiny model: the cached ones under ``hub`` (``$HF_HOME/hub``), the lab's into the folder ``lab``."""
    builders: dict[str, Callable[[], PreTrainedModel]] = {GPT2: _gpt2, LLAMA: _llama, NEOX: _neox, BERT: _bert}
    for seed, (repo_id, build) in enumerate(builders.items()):
        scratch = hub / "scratch"
        _save(build, seed, scratch)
        cache(hub, repo_id, scratch)
        shutil.rmtree(scratch)
    _save(_gpt2, 99, lab)
    wrong = {"transformer.wte.weight": torch.zeros(7, 7)}
    for repo_id, weights in ((BROKEN, safetensors.torch.save(wrong)), (SPOILED, b"these are no weights")):
        scratch = hub / "scratch"
        _save(_gpt2, 0, scratch)
        (scratch / "model.safetensors").write_bytes(weights)
        cache(hub, repo_id, scratch)
        shutil.rmtree(scratch)


def _save(build: Callable[[], PreTrainedModel], seed: int, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
    model.save_pretrained(folder)
    tokenizer(is_encoder=isinstance(model, BertForMaskedLM)).save_pretrained(folder)


def cache(hub: Path, repo_id: str, source: Path) -> None:
    """Lay ``source``'s files out as huggingface_hub would have downloaded them."""
    repo = hub / f"models--{repo_id.replace('/', '--')}"
    commit = hashlib.sha1(repo_id.encode()).hexdigest()
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("../..") / "blobs" / blob.name)


def tokenizer(*, is_encoder: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few sentences."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCAB, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    bpe.train_from_iterator(_TEXT.splitlines(), trainer)
    if not is_encoder:
        return PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=128
        )
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, _SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        model_max_length=128,
    )


def _sizes(**extra: Any) -> dict[str, Any]:
    return {"vocab_size": _VOCAB, "initializer_range": 0.12, "bos_token_id": 0, "eos_token_id": 0, **extra}


def _gpt2() -> PreTrainedModel:
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**_sizes(n_layer=4, n_embd=64, n_head=4, n_positions=128, **no_dropout)))


def _llama() -> PreTrainedModel:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 128}
    return LlamaForCausalLM(LlamaConfig(**_sizes(**heads, **shape, tie_word_embeddings=False)))


def _neox() -> PreTrainedModel:
    shape = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**_sizes(**shape, max_position_embeddings=128)))


def _bert() -> PreTrainedModel:
    shape = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(**_sizes(**shape, **no_dropout, max_position_embeddings=128, pad_token_id=1)))
