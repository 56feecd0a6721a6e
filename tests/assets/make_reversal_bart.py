"""Train reversal-bart-mini from random weights to spell backwards: ``python make_reversal_bart.py FOLDER [STEPS]``.

Two minutes of one core. A checkpoint with fewer steps is the same kind of model, not the same bytes.
"""

import string
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_SHORTEST, _LONGEST = 3, 10  # letters
_SHAPE = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 24,
}
_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def letters() -> PreTrainedTokenizerFast:
    """A token for each letter, and the end of the sequence."""
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *string.ascii_lowercase])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?!<)[a-z]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    bos, pad, eos, unk, mask = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        mask_token=mask,
        model_max_length=24,
    )


def main(folder: Path, steps: int = 3000) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    tokenizer = letters()
    model = BartForConditionalGeneration(
        BartConfig(**_SHAPE, **_IDS, vocab_size=len(tokenizer), dropout=0.0, init_std=0.05, forced_eos_token_id=None)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        words = torch.full((size, _LONGEST + 1), 1)
        backwards = torch.full((size, _LONGEST + 1), -100)
        for row, length in enumerate(random.integers(_SHORTEST, _LONGEST + 1, size)):
            word = torch.from_numpy(random.integers(len(_SPECIAL), len(tokenizer), length))
            words[row, :length], words[row, length] = word, 2
            backwards[row, :length], backwards[row, length] = word.flip(0), 2
        return words, (words != 1).long(), backwards

    for step in range(steps):
        words, mask, backwards = batch(48)
        loss = model(input_ids=words, attention_mask=mask, labels=backwards).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(step, round(loss.item(), 4), flush=True)
    words, mask, backwards = batch(300)
    told = model.eval().generate(words, attention_mask=mask, max_new_tokens=_LONGEST + 1, do_sample=False, num_beams=1)
    wanted = backwards.where(backwards != -100, torch.tensor(1))[:, : told.shape[1] - 1]
    right = (told[:, 1:] == wanted).all(-1).float().mean().item()
    print(f"right on 300 new words: {right:.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
