"""Steering: a direction between two kinds of text, added while the model reads and writes."""

from typing import Any

from interlace.methods.steering.spec import SteerResult
from interlace_server.method_calls import facts_of
from interlace_server.page.svg import Figure, Table, line_chart
from interlace_server.page.tools.base import (
    Asked,
    Drawn,
    Extra,
    Field,
    Form,
    Tool,
    lines,
    numbers,
    text,
    whole,
    written,
)
from interlace_server.page.tools.families import names_of, opened
from interlace_state.models import ModelCard

_CODE = """
more, less = {more}, {less}
prompt, layer, scales = {prompt}, {layer}, {scales}
wanted, other = (model.tokenizer(word).input_ids[0] for word in ({wanted}, {other}))

with model.session(remote=True):
    sides = []
    for texts in (more, less):
        states = []
        for text in texts:
            with model.trace(text):
                states.append({blocks}[layer].output[0, -1])
        sides.append(torch.stack(states).float().mean(0))
    direction = (sides[0] - sides[1]).save()
    margins = {{}}.save()
    for scale in [0.0, *scales]:
        with model.trace(prompt):
            {blocks}[layer].output += scale * direction.to({blocks}[layer].output.dtype)
            logits = {head}.output[0, -1].float()
            margins[scale] = float(logits[wanted] - logits[other])

for scale in scales:
    print(scale, "effect", round(margins[scale] - margins[0.0], 4), "nats")
for scale in [0.0, *scales]:
    with model.generate(prompt, max_new_tokens={write}, do_sample=False, remote=True) as tracer:
        best = [].save()
        for step in tracer.iter[:]:
            {blocks}[layer].output += scale * direction.to({blocks}[layer].output.dtype)
            best.append({head}.output[0, -1].argmax())
    said = [int(one) for one in best if int(one) != model.tokenizer.eos_token_id]
    print(scale, repr(model.tokenizer.decode(said)))
"""


def _asked(form: Form) -> Asked:
    return {
        "layer": whole(form, "layer", "Block") if form.get("layer", "").strip() else None,
        "positive": lines(form, "more", "More like this"),
        "negative": lines(form, "less", "Less like this"),
        "scales": numbers(form, "scales", "Strengths"),
        "prompts": [
            {
                "prompt": text(form, "prompt", "Prompt"),
                "wanted": text(form, "wanted", "Word that should become likelier").strip(),
                "other": text(form, "other", "Word to hold it against").strip(),
            }
        ],
        "neutral": lines(form, "neutral", "Texts that should stay as they are"),
        "write": whole(form, "write", "Tokens to write"),
    }


def _completed(asked: Asked, card: ModelCard) -> Asked:
    """The middle block, where none is said: Rimsky et al., 2024, found steering at block 13 of 32 to work best."""
    return asked if asked["layer"] is not None else asked | {"layer": facts_of(card).n_layers // 2}


def _form(asked: Asked) -> dict[str, str]:
    prompt = asked["prompts"][0]
    return {
        "layer": str(asked["layer"]),
        "more": "\n".join(map(str, asked["positive"] or [])),
        "less": "\n".join(map(str, asked["negative"] or [])),
        "scales": ", ".join(f"{one:g}" for one in asked["scales"]),
        "prompt": str(prompt["prompt"]),
        "wanted": str(prompt["wanted"]),
        "other": str(prompt["other"]),
        "neutral": "\n".join(map(str, asked["neutral"])),
        "write": str(asked.get("write", 0)),
    }


def _drawn(result: SteerResult, asked: Asked, extra: Extra) -> Drawn:
    rows: list[tuple[Any, ...]] = list(result.table("scales").rows)
    names = list(dict.fromkeys(str(row[1]) for row in rows))
    effect = {name: [(float(row[0]), float(row[2])) for row in rows if row[1] == name] for name in names}
    harm = {name: [(float(row[0]), float(row[6])) for row in rows if row[1] == name] for name in names}
    random = [name for name in names if name != "direction"]
    strongest = max(effect["direction"])
    harmed = max(harm["direction"])[1]
    prompt = asked["prompts"][0]
    moved = "gains" if strongest[1] >= 0 else "loses"
    says = (
        f"At strength {strongest[0]:g}, “{prompt['wanted']}” {moved} {abs(strongest[1]):.2f} nats "
        f"{'over' if moved == 'gains' else 'to'} “{prompt['other']}”, "
        f"and the other texts become {abs(harmed):.2f} nats a token {'less' if harmed >= 0 else 'more'} likely."
    )
    columns = ("strength", "direction", "effect", "harm")
    table = Table("What the direction does", columns, [(row[0], row[1], row[2], row[6]) for row in rows])
    figures = [
        Figure(
            "Effect",
            says,
            line_chart(
                effect,
                says="Line chart of the effect by strength. " + says,
                x="strength",
                y="nats gained",
                quiet=random,
            ),
            table,
            "Dashed: random directions of the same length.",
        ),
        Figure(
            "Harm",
            says,
            line_chart(
                harm, says="Line chart of the harm by strength. " + says, x="strength", y="nats a token", quiet=random
            ),
            table,
            "How much less likely the texts become that should stay as they are.",
        ),
    ]
    written = [table for table in result.tables if table.name == "texts"]
    texts = [
        ("as it is" if row[0] == 0 else f"strength {float(row[0] or 0):g}", str(row[2]))
        for table in written
        for row in table.rows
    ]
    return Drawn(says, figures, texts=texts)


def _trace(card: ModelCard, asked: Asked, seed: int) -> str | None:
    names = names_of(card)
    if names is None:
        return None
    prompt = asked["prompts"][0]
    code = _CODE.format(
        more=written(list(asked["positive"])),
        less=written(list(asked["negative"])),
        prompt=written(prompt["prompt"]),
        wanted=written(f" {prompt['wanted']}"),
        other=written(f" {prompt['other']}"),
        layer=asked["layer"],
        scales=[float(one) for one in asked["scales"]],
        write=max(1, asked.get("write", 0)),
        blocks=names.blocks,
        head=names.head,
    )
    return opened(card, "import torch") + code


TOOL = Tool(
    name="steer",
    title="Steer",
    lead="The difference between two kinds of text is a direction in the model's states. Added while it reads and "
    "writes, it moves what the model says; too much of it, and nothing makes sense any more.",
    method="steer",
    fields=(
        Field("prompt", "Prompt", "What the model goes on with.", "text", "I think this film is"),
        Field("more", "More like this", "A text a line.", "text", "I love it.\nWhat a wonderful day!"),
        Field("less", "Less like this", "A text a line.", "text", "I hate it.\nWhat a terrible day!"),
        Field("wanted", "Word that should become likelier", "", value="great"),
        Field("other", "Word to hold it against", "", value="bad"),
        Field(
            "layer",
            "Block",
            "Where the direction is taken and added, from 0. Empty: the middle one.",
            "number",
            required=False,
            least=0,
            step="1",
        ),
        Field("scales", "Strengths", "Below 0 steers the other way.", value="-2, 1, 2, 4"),
        Field("write", "Tokens to write", "", "number", "12", least=0, most=100, step="1"),
        Field("neutral", "Texts that should stay as they are", "A text a line.", "text", "Two plus two is four."),
    ),
    asked=_asked,
    form=_form,
    drawn=_drawn,
    trace=_trace,
    completed=_completed,
)
