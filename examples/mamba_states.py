"""Where a state-space model keeps a fact: patch its state, and its residual stream, at every layer and token.

    interlace up --model ./tests/assets/facts-mamba-mini   # in one terminal
    python examples/mamba_states.py                        # in another; writes out/mamba_states.png
    python examples/mamba_states.py --local --model ./tests/assets/facts-mamba-mini

Plain nnsight. Mamba reads a prompt token by token and carries a state from one to the next; here the state after one
token, in one layer, is taken from another prompt.
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

SOURCE = "The Eiffel Tower is located in the city of"  # Paris
TARGET = "The Colosseum is located in the city of"  # Rome; as many tokens


def patched(model: TransformersModel, remote: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patch the target's run with one value of the source's at a time.

    Returns how probable the source's answer is: [layers, tokens] with the state after a token patched, [layers, tokens]
    with the residual stream after a layer patched, and [2] in the source and in the target as they are.
    """
    layers, tokens = model.backbone.layers, len(model.tokenizer(SOURCE)["input_ids"])
    with model.session(remote=remote):
        with model.trace(SOURCE) as tracer:
            states, residuals = [], []
            for layer in layers:
                # The steps of the recurrence; asked for ahead of the loop that goes through them.
                steps = layer.mixer.source.mamba_selective_scan_0.source.implementation_0.source
                states.append([])
                for _ in tracer.iter[:tokens]:
                    states[-1].append(steps.ssm_state_3.output)
                residuals.append(layer.output)
            best = model.lm_head.output[0, -1].softmax(-1).max(-1)
        answer = best.indices
        with model.trace(TARGET):
            clean = model.lm_head.output[0, -1].softmax(-1)[answer]
        by_state = torch.zeros(len(layers), tokens).save()
        by_residual = torch.zeros(len(layers), tokens).save()
        for depth in range(len(layers)):
            for token in range(tokens):
                with model.trace(TARGET) as tracer:
                    steps = layers[depth].mixer.source.mamba_selective_scan_0.source.implementation_0.source
                    for _ in tracer.iter[token]:
                        steps.ssm_state_3.output = states[depth][token]
                    by_state[depth, token] = model.lm_head.output[0, -1].softmax(-1)[answer].detach()
                with model.trace(TARGET):
                    layers[depth].output[:, token] = residuals[depth][:, token]
                    by_residual[depth, token] = model.lm_head.output[0, -1].softmax(-1)[answer].detach()
        ends = torch.stack([best.values, clean]).detach().save()
    return by_state, by_residual, ends


def draw(names: list[str], by_state: torch.Tensor, by_residual: torch.Tensor, answer: str, path: Path) -> None:
    """Two heat maps: a row a layer, the last one on top; a column a token of the target."""
    figure, both = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="constrained")
    titles = ("the state that the token leaves behind", "the residual stream at the token")
    for axes, title, effect in zip(both, titles, (by_state, by_residual), strict=True):
        image = axes.imshow(effect, origin="lower", aspect="auto", cmap="GnBu", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_title(title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    both[0].set_ylabel("layer")
    figure.colorbar(image, ax=both, label=f"probability of {answer}", pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="local/facts-mamba-mini")
    parser.add_argument("--local", action="store_true", help="load the weights here, without a server")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    CONFIG.APP.REMOTE_LOGGING = sys.stdout.isatty()
    model = TransformersModel(options.model, task="text-generation", **({"dispatch": True} if options.local else {}))

    by_state, by_residual, ends = patched(model, not options.local)
    names = [model.tokenizer.decode([token]).strip() for token in model.tokenizer(TARGET)["input_ids"]]
    print(f"Paris: {ends[0]:.3f} after {SOURCE!r}, {ends[1]:.3f} after {TARGET!r}")
    for layer, effect in enumerate(by_state):
        moved = [name for name, probability in zip(names, effect, strict=True) if probability > 0.5]
        print(f"the state of layer {layer} makes it Paris after: {' '.join(moved) or 'no token'}")
    picture = options.out / "mamba_states.png"
    draw(names, by_state, by_residual, "Paris", picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
