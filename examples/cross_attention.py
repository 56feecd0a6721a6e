"""Where a decoder looks: the attention of an encoder-decoder that spells words backwards, and what cutting it does.

    interlace up --model ./tests/assets/reversal-bart-mini --task fill-mask   # in one terminal
    python examples/cross_attention.py                                        # in another
    python examples/cross_attention.py --local --model ./tests/assets/reversal-bart-mini

Plain nnsight. The model is a BART, which transformers opens whole for the task `fill-mask`.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("NDIF_HOST", "http://127.0.0.1:8000")
os.environ.setdefault("HF_ENDPOINT", os.environ["NDIF_HOST"] + "/hf")

import matplotlib.pyplot as plt
import torch
from nnsight import CONFIG
from nnsight.modeling.transformers import TransformersModel

WORD = "interlace"


def looked(model: TransformersModel, word: str, remote: bool) -> tuple[str, torch.Tensor]:
    """What the model makes of a word, and [layers, heads, letters written, letters read]: its cross-attention."""
    ids = model.tokenizer(word, return_tensors="pt")["input_ids"]
    with model.session(remote=remote):
        with model.generate(ids, max_new_tokens=ids.shape[1], do_sample=False, num_beams=1) as tracer:
            written = tracer.result.save()
        with model.trace(ids, decoder_input_ids=written[:, :-1]):
            found = []
            for layer in model.model.decoder.layers:
                attention = layer.encoder_attn
                arguments, keywords = attention.source.attention_interface_1.inputs
                queries, keys = arguments[1], arguments[2]
                found.append((queries @ keys.transpose(-1, -2) * keywords["scaling"]).softmax(dim=-1)[0])
            weights = torch.stack(found).detach().save()
    return model.tokenizer.decode(written[0], skip_special_tokens=True), weights


def without(model: TransformersModel, word: str, letter: int, remote: bool) -> str:
    """What the model makes of a word when its decoder reads nothing of one letter's encoding."""
    ids = model.tokenizer(word, return_tensors="pt")["input_ids"]
    with model.generate(ids, max_new_tokens=ids.shape[1], do_sample=False, num_beams=1, remote=remote) as tracer:
        model.model.encoder.output.last_hidden_state[:, letter] = 0
        written = tracer.result.save()
    return model.tokenizer.decode(written[0], skip_special_tokens=True)


def draw(word: str, written: str, weights: torch.Tensor, path: Path) -> None:
    """A row a layer, a column a head; in each, a row a letter written, a column a letter read."""
    layers, heads = weights.shape[:2]
    figure, grid = plt.subplots(layers, heads, figsize=(2.4 * heads, 2.6 * layers), layout="constrained")
    for layer, row in enumerate(grid):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head], cmap="GnBu", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(word) + 1), [*word, "end"], fontsize=8)
            axes.set_yticks(range(weights.shape[2]), [*written, "end"][: weights.shape[2]], fontsize=8)
            axes.tick_params(length=0)
            axes.set_title(f"layer {layer}, head {head}", fontsize=9)
    figure.supxlabel("reads")
    figure.supylabel("writes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="local/reversal-bart-mini")
    parser.add_argument("--local", action="store_true", help="load the weights here, without a server")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    CONFIG.APP.REMOTE_LOGGING = sys.stdout.isatty()
    weights = {"dispatch": True} if options.local else {}
    model = TransformersModel(options.model, task="fill-mask", **weights)

    written, attention = looked(model, WORD, not options.local)
    print(f"{WORD} -> {written}")
    for letter in (0, 4):
        print(f"without what the encoder says of {WORD[letter]!r}: {without(model, WORD, letter, not options.local)}")
    picture = options.out / "cross_attention.png"
    draw(WORD, written, attention, picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
