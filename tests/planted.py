"""Language models whose weights are set by hand, so that what a method should find in them is known."""

from collections.abc import Sequence

import torch
from nnsight.modeling.transformers import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def words(*texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words, in the order of ``texts``; the first is `<end>`."""
    every = list(dict.fromkeys(["<end>", *(word for text in texts for word in text)]))
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(every)}, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<end>", eos_token="<end>", model_max_length=16)


def blank(tokenizer: PreTrainedTokenizerFast, n_layer: int, n_embd: int, n_head: int = 1) -> GPT2LMHeadModel:
    """A GPT-2 whose blocks add nothing and whose head is its own; norms are plain."""
    shape = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "n_positions": 16, "tie_word_embeddings": False}
    no_dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape, **no_dropout)
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    return model


def relation(
    n_subjects: int = 32, n_objects: int = 4, seed: int = 0
) -> tuple[TransformersModel, list[tuple[str, str]]]:
    """A model that answers "SUBJECT is" by a map that is nearly affine in the subject's state, and its (subject,
    object).

    A subject's embedding is a large part that all tokens share, a small one of its object, a smaller one of its own.
    Block 1 adds the mean of what it reads, turned by the planted map, and the head reads objects where the map puts
    them.
    """
    subjects = [f"subject{number}" for number in range(n_subjects)]
    objects = [f"object{number}" for number in range(n_objects)]
    tokenizer = words(subjects, objects, ["is"])
    model = blank(tokenizer, n_layer=3, n_embd=32)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(_centred(torch.randn(32, 24, generator=generator)))[0].mT
    shared, source, target = basis[0], basis[1 : 1 + n_objects], basis[1 + n_objects : 1 + 2 * n_objects]
    own = basis[1 + 2 * n_objects :]
    said = [(subject, objects[number % n_objects]) for number, subject in enumerate(subjects)]
    table = model.transformer.wte.weight
    with torch.no_grad():
        table.copy_((8 * shared).expand_as(table))
        for subject, answer in said:
            row = tokenizer.convert_tokens_to_ids(subject)
            table[row] += source[objects.index(answer)] + 0.3 * torch.randn(len(own), generator=generator) @ own
        attention = model.transformer.h[1].attn
        attention.c_attn.weight[:, 64:].copy_(torch.eye(32))  # values; queries and keys are 0, so every token weighs 1
        attention.c_proj.weight.copy_(6 * source.mT @ target)
        for number, word in enumerate(objects):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)] = target[number]
    return TransformersModel(model, tokenizer=tokenizer), said


def _centred(vectors: Tensor) -> Tensor:
    """Columns without a mean, which a norm would take from them."""
    return vectors - vectors.mean(0)


def mediator(seed: int = 0) -> tuple[TransformersModel, Tensor, Tensor]:
    """A model that answers "VALUE CLUE is" by its VALUE; the plane [2, 32] where it keeps it, and the CLUE's [2, 32].

    Block 1 brings the value to the last token, as one of four points of the first plane; it brings the clue there, too,
    as a point of the second, which nothing reads.
    """
    values, clues, answers = ([f"{name}{number}" for number in range(4)] for name in ("value", "clue", "answer"))
    tokenizer = words(values, clues, answers, ["is"])
    model = blank(tokenizer, n_layer=4, n_embd=32)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(_centred(torch.randn(32, 9, generator=generator)))[0].mT
    shared, value_in, clue_in, plane, decoy = basis[0], basis[1:3], basis[3:5], basis[5:7], basis[7:9]
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    table = model.transformer.wte.weight
    with torch.no_grad():
        table.copy_((8 * shared).expand_as(table))
        for number in range(4):
            table[tokenizer.convert_tokens_to_ids(values[number])] += corners[number] @ value_in
            table[tokenizer.convert_tokens_to_ids(clues[number])] += corners[number] @ clue_in
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(answers[number])] = 2 * corners[number] @ plane
        attention = model.transformer.h[1].attn
        attention.c_attn.weight[:, 64:].copy_(torch.eye(32))
        attention.c_proj.weight.copy_(6 * (value_in.mT @ plane + clue_in.mT @ decoy))
    return TransformersModel(model, tokenizer=tokenizer), plane, decoy


def relay(seed: int = 0) -> TransformersModel:
    """A model that answers "VALUE CLUE is" by its VALUE, which block 0 brings to the last token: the head reads it
    there, and, weighed three times, what block 2's attention makes of it. Nothing else does anything."""
    values, clues, answers = ([f"{name}{number}" for number in range(4)] for name in ("value", "clue", "answer"))
    tokenizer = words(values, clues, answers, ["is"])
    model = blank(tokenizer, n_layer=4, n_embd=32)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(_centred(torch.randn(32, 7, generator=generator)))[0].mT
    shared, value_in, plane, relayed = basis[0], basis[1:3], basis[3:5], basis[5:7]
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    table = model.transformer.wte.weight
    with torch.no_grad():
        table.copy_((8 * shared).expand_as(table))
        for number in range(4):
            table[tokenizer.convert_tokens_to_ids(values[number])] += corners[number] @ value_in
            row = corners[number] @ (plane + 3 * relayed)
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(answers[number])] = row
        for layer, moved in ((0, 6 * value_in.mT @ plane), (2, plane.mT @ relayed)):
            attention = model.transformer.h[layer].attn
            attention.c_attn.weight[:, 64:].copy_(torch.eye(32))
            attention.c_proj.weight.copy_(moved)
    return TransformersModel(model, tokenizer=tokenizer)
