"""A first look inside a hosted model: a logit lens, and an activation patch that changes the answer.

    python examples/first_trace.py                      # on the Interlace at $NDIF_HOST
    python examples/first_trace.py --local --model DIR  # the same code on this machine

Plain nnsight. The model opened here is a skeleton without weights: each experiment runs beside the weights,
and only what it saves comes back.
"""

import argparse
import os
import sys
from pathlib import Path

# Where nnsight sends traces, and where the config and the tokenizer come from. Both are read at import.
os.environ.setdefault("NDIF_HOST", "http://127.0.0.1:8000")
os.environ.setdefault("HF_ENDPOINT", os.environ["NDIF_HOST"] + "/hf")

import matplotlib.pyplot as plt
import torch
from nnsight import CONFIG
from nnsight.modeling.transformers import TransformersModel

PARIS = "The Eiffel Tower is in the city of"
ROME = "The Colosseum is in the city of"
# What is patched: the residual stream after layer 10 at the 7th token from the end, which names the
# monument in both prompts ("iffel" and "osse").
LAYER, POSITION = 10, -7


def logit_lens(model: TransformersModel, prompt: str, remote: bool) -> list[torch.Tensor]:
    """Read every layer as if it were the last one.

    Returns the top token's id and probability, both [layers, positions], and [layers]: at the last position,
    how many tokens a layer puts before the model's answer.
    """
    with model.trace(prompt, remote=remote):
        lens = []
        for layer in model.model.layers:
            lens.append(model.lm_head(model.model.norm(layer.output))[0].softmax(dim=-1))
        probabilities, tokens = torch.stack(lens).max(dim=-1)
        probabilities, tokens = probabilities.detach().save(), tokens.save()
        last = torch.stack([layer[-1] for layer in lens])
        ranks = (last > last[:, tokens[-1, -1], None]).sum(dim=-1).save()
    return [tokens, probabilities, ranks]


def patch(model: TransformersModel, source: str, target: str, remote: bool) -> list[torch.Tensor]:
    """Next-token probabilities of `source`, of `target`, and of `target` with one activation of `source`."""
    with model.session(remote=remote):  # three forward passes, one request
        with model.trace(source):
            activation = model.model.layers[LAYER].output[:, POSITION]
            of_source = model.output.logits[0, -1].softmax(dim=-1).detach().save()
        with model.trace(target):
            of_target = model.output.logits[0, -1].softmax(dim=-1).detach().save()
        with model.trace(target):
            model.model.layers[LAYER].output[:, POSITION] = activation
            of_patched = model.output.logits[0, -1].softmax(dim=-1).detach().save()
    return [of_source, of_target, of_patched]


def draw(title: str, prompt: list[str], tops: list[list[str]], probabilities: torch.Tensor, path: Path) -> None:
    """The lens as a heat map: a row a layer, the last one on top; a column a token of the prompt."""
    layers, positions = probabilities.shape
    figure, axes = plt.subplots(figsize=(1.5 + 1.15 * positions, 1.8 + 0.32 * layers), layout="constrained")
    image = axes.imshow(probabilities, origin="lower", aspect="auto", cmap="GnBu", vmin=0, vmax=1)
    for layer in range(layers):
        for position in range(positions):
            text, dark = tops[layer][position], probabilities[layer, position] > 0.65
            style = {"color": "white" if dark else "#222222", "weight": "bold" if text == tops[-1][-1] else "normal"}
            axes.text(position, layer, text[:12].replace("$", r"\$"), ha="center", va="center", fontsize=11, **style)
    axes.hlines([layer + 0.5 for layer in range(layers - 1)], -0.5, positions - 0.5, color="white", linewidth=1)
    axes.vlines([position + 0.5 for position in range(positions - 1)], -0.5, layers - 0.5, color="white", linewidth=1)
    axes.set_xticks(range(positions), prompt, fontsize=11)
    axes.set_yticks(range(layers), range(layers), fontsize=9)
    axes.set_xlabel("token of the prompt", fontsize=12)
    axes.set_ylabel("layer", fontsize=12)
    axes.set_title(title, fontsize=14, pad=12)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="probability of the token shown", pad=0.02, aspect=40)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--local", action="store_true", help="load the weights here, without a server")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args()
    CONFIG.APP.REMOTE_LOGGING = sys.stdout.isatty()  # the live status of a job needs a terminal
    remote, where = not options.local, "here" if options.local else "remotely"
    weights = {"dispatch": True, "dtype": torch.float32} if options.local else {}
    model = TransformersModel(options.model, task="text-generation", **weights)

    def show(token: int | torch.Tensor) -> str:
        return model.tokenizer.decode([int(token)]).replace("\n", "⏎").strip() or "␣"

    print(f'tracing {len(model.model.layers)} layers {where}: "{PARIS}" ...', flush=True)
    tokens, probabilities, ranks = logit_lens(model, PARIS, remote)
    answer = show(tokens[-1, -1])
    print(f"\nlayer  would say   probability   rank of {answer}")
    for layer, (token, probability, rank) in enumerate(zip(tokens[:, -1], probabilities[:, -1], ranks, strict=True)):
        print(f"{layer:5}  {show(token):10}  {probability:11.3f}   {rank + 1:6}")
    picture = options.out / "logit_lens.png"
    title = f"Logit lens: what {Path(options.model).name} would say next, layer by layer"
    prompt = [show(token) for token in model.tokenizer(PARIS)["input_ids"]]
    draw(title, prompt, [[show(token) for token in row] for row in tokens], probabilities, picture)
    print(f"\nwrote {picture}")

    print(f'\npatching layer {LAYER} {where}: "{PARIS}" into "{ROME}" ...', flush=True)
    answers = patch(model, PARIS, ROME, remote)
    tops = [answer.argmax() for answer in answers]
    for name, answer, top in zip([f'"{PARIS}"', f'"{ROME}"', "the same, patched"], answers, tops, strict=True):
        odds = "   ".join(f"{show(token)} {answer[token]:.3f}" for token in tops[:2])
        print(f"  {name:36}  ->  {show(top):6}  ({odds})")
    print(f"one activation turned {show(tops[1])} into {show(tops[2])}.")


if __name__ == "__main__":
    main()
