"""A small GPT-2 that has learned made-up texts of whole words, for experiments on what it has learned."""

from collections.abc import Callable, Sequence

import torch
from nnsight.modeling.transformers import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Each word is a token, split at spaces; `<end>` is the first."""
    every = ["<end>", *words]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(every)}, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<end>", eos_token="<end>", model_max_length=64)


def reader(
    seed: int,
    words: PreTrainedTokenizerFast,
    texts: Callable[[int], list[str]],
    *,
    steps: int,
    lr: float,
    width: int = 64,
) -> TransformersModel:
    """Three blocks, trained on ``texts(seed of a batch)``, which are of one length."""
    torch.manual_seed(seed)
    shape = {"n_layer": 3, "n_embd": width, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    module = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **shape, **no_dropout))
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        ids = torch.tensor(words(texts(seed * 100_003 + step))["input_ids"])
        loss = module(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    module.eval()
    return TransformersModel(module, tokenizer=words)
