"""The logit lens: what the model would say after each block, at every token."""

from math import exp
from typing import Any

from interlace.methods.lens.spec import LensResult
from interlace_server.page.svg import Cell, Figure, Table, heat_map, shortened
from interlace_server.page.tools.base import Asked, Drawn, Extra, Field, Form, Tool, text, written
from interlace_server.page.tools.families import names_of, opened
from interlace_state.models import ModelCard

_CODE = """
prompt = {prompt}
with model.trace(prompt, remote=True):
    says = [].save()
    for block in {blocks}:
        logits = {head}({norm}(block.output))
        says.append(logits[0].log_softmax(-1).max(-1))

tokens = [model.tokenizer.decode(one) for one in model.tokenizer(prompt).input_ids]
print("tokens:", tokens)
for layer, best in enumerate(says):
    print(layer, [model.tokenizer.decode(one) for one in best.indices.tolist()], best.values.exp().tolist())
"""


def _asked(form: Form) -> Asked:
    return {"prompts": [text(form, "prompt", "Prompt")], "positions": "all", "top": 3}


def _form(asked: Asked) -> dict[str, str]:
    return {"prompt": str(asked["prompts"][0])}


def _drawn(result: LensResult, asked: Asked, extra: Extra) -> Drawn:
    rows: list[tuple[Any, ...]] = [row for row in result.table("readings").rows if row[0] == 0]
    tokens = [str(row[2]) for row in result.table("tokens").rows if row[0] == 0]
    best = [row for row in rows if row[3] == 0]
    layers = list(reversed(result.layers))
    cells = {
        (layers.index(row[2]), row[1]): Cell(exp(row[5]), str(row[4]))
        for row in best
        if row[2] in layers and isinstance(row[1], int) and 0 <= row[1] < len(tokens)
    }
    last = [row for row in best if row[1] == len(tokens) - 1]
    final = max(last, key=lambda row: row[2])
    first = next(row[2] for row in sorted(last, key=lambda row: row[2]) if _same_from(last, row[2], final[4]))
    says = (
        f"The model goes on with “{shortened(str(final[4]))}” (probability {exp(final[5]):.2f}); "
        f"from block {first} on that is what it would have said."
    )
    svg = heat_map(
        tokens,
        [str(layer) for layer in layers],
        cells,
        says="Heat map: the likeliest token after each block at each token. " + says,
        x="the prompt's tokens",
        y="block",
        most=1.0,
        unit="probability",
    )
    table = Table(
        "What the model would say",
        ("block", "token", "rank", "would say", "probability"),
        [(row[2], tokens[row[1]], row[3] + 1, row[4], exp(row[5])) for row in rows],
    )
    note = "Each field: what comes next according to that block; the stronger its colour, the surer."
    return Drawn(says, [Figure("What the model would say after each block", says, svg, table, note)])


def _same_from(rows: list[tuple[Any, ...]], layer: int, token: str) -> bool:
    return all(row[4] == token for row in rows if row[2] >= layer)


def _trace(card: ModelCard, asked: Asked, seed: int) -> str | None:
    names = names_of(card)
    if names is None:
        return None
    code = _CODE.format(prompt=written(asked["prompts"][0]), blocks=names.blocks, head=names.head, norm=names.norm)
    return opened(card) + code


TOOL = Tool(
    name="lens",
    title="Logit lens",
    lead="A model builds its answer block by block. The lens reads what it would say if it stopped after each of them.",
    method="lens.logit",
    fields=(Field("prompt", "Prompt", "A text that the model goes on with.", "text", "The capital of France is"),),
    asked=_asked,
    form=_form,
    drawn=_drawn,
    trace=_trace,
)
