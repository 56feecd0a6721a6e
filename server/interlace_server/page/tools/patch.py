"""Activation patching between two prompts, in both directions."""

from typing import Any

from interlace.methods.patch.spec import PatchResult
from interlace_server.page.svg import Cell, Figure, Table, heat_map, shortened
from interlace_server.page.tools.base import Asked, Drawn, Extra, Field, Form, Tool, text, written
from interlace_server.page.tools.families import names_of, opened
from interlace_state.models import ModelCard

_CODE = """
a, b = {a}, {b}
ids = {{prompt: model.tokenizer(prompt).input_ids for prompt in (a, b)}}
same = next((at for at, pair in enumerate(zip(ids[a], ids[b])) if pair[0] != pair[1]), 0)
rest = min(len(ids[a]), len(ids[b])) - same  # from there on, side by side from their ends
pairs = [(at, at) for at in range(same)]
pairs += [(len(ids[a]) - back, len(ids[b]) - back) for back in range(rest, 0, -1)]

with model.session(remote=True):
    with model.trace(a):
        states_a = [block.output[0] for block in {blocks}]
        last_a = {head}.output[0, -1]
    with model.trace(b):
        states_b = [block.output[0] for block in {blocks}]
        last_b = {head}.output[0, -1]
    first, second = {first}, {second}
    clean_a, clean_b = last_a[first] - last_a[second], last_b[first] - last_b[second]
    effects = torch.zeros(2, len(states_a), len(pairs)).save()
    for layer in range(len(states_a)):
        for column, (at_a, at_b) in enumerate(pairs):
            with model.trace(a):
                {blocks}[layer].output[:, at_a] = states_b[layer][at_b]
                last = {head}.output[0, -1]
                effects[0, layer, column] = (last[first] - last[second] - clean_a) / (clean_b - clean_a)
            with model.trace(b):
                {blocks}[layer].output[:, at_b] = states_a[layer][at_a]
                last = {head}.output[0, -1]
                effects[1, layer, column] = (last[first] - last[second] - clean_b) / (clean_a - clean_b)

for name, grid in zip(("states of b in a", "states of a in b"), effects):
    print(name)
    for layer in reversed(range(len(grid))):
        print(layer, [round(value, 2) for value in grid[layer].tolist()])
"""


def _asked(form: Form) -> Asked:
    asked: Asked = {"a": text(form, "a", "Prompt A"), "b": text(form, "b", "Prompt B")}
    for name in ("answer_a", "answer_b"):
        if said := form.get(name, "").strip():
            asked[name] = said
    return asked


def _form(asked: Asked) -> dict[str, str]:
    return {name: str(asked.get(name) or "") for name in ("a", "b", "answer_a", "answer_b")}


def _drawn(result: PatchResult, asked: Asked, extra: Extra) -> Drawn:
    rows: list[tuple[Any, ...]] = list(result.table("effects").rows)
    tokens: list[tuple[Any, ...]] = list(result.table("tokens").rows)
    columns = [str(row[3]) if row[3] == row[4] else f"{row[3]} / {row[4]}" for row in tokens]
    layers = sorted({int(row[1]) for row in rows}, reverse=True)
    figures, found = [], []
    for into, other in (("a", "b"), ("b", "a")):
        mine = [row for row in rows if row[0] == into]
        cells = {(layers.index(int(row[1])), int(row[2])): Cell(float(row[4] or 0)) for row in mine}
        early = [row for row in mine if int(row[2]) < len(columns) - 1] or mine
        if not early:
            continue
        top = max(early, key=lambda row: float(row[4] or 0))
        says = (
            f"Before the last token, the state of {other.upper()} that moves {into.upper()}'s answer most is at "
            f"“{shortened(columns[int(top[2])])}” after block {top[1]} ({float(top[4] or 0):.0%} of the way)."
        )
        found.append(says)
        title = f"States of {other.upper()} put into {into.upper()}"
        svg = heat_map(
            columns,
            [str(layer) for layer in layers],
            cells,
            says=f"Heat map: {title}. {says}",
            x="tokens of A / of B",
            y="block",
            most=1.0,
            unit="of the way to the other answer",
        )
        numbers = [(row[1], columns[int(row[2])], row[4], row[3]) for row in mine]
        table = Table(title, ("block", "token", "effect", "logit difference"), numbers)
        note = f"0: {into.upper()} answers as before; 1: it answers as {other.upper()} does."
        figures.append(Figure(title, says, svg, table, note))
    answers = [shortened(one) for one in result.answers]
    return Drawn(f"A is answered with “{answers[0]}”, B with “{answers[1]}”. " + " ".join(found), figures)


def _trace(card: ModelCard, asked: Asked, seed: int) -> str | None:
    names = names_of(card)
    if names is None:
        return None
    said = [asked.get("answer_a"), asked.get("answer_b")]
    tokens = [
        f"model.tokenizer({written(f' {word}')}).input_ids[0]" if word else f"int({last}.argmax())"
        for word, last in zip(said, ("last_a", "last_b"), strict=True)
    ]
    code = _CODE.format(
        a=written(asked["a"]),
        b=written(asked["b"]),
        first=tokens[0],
        second=tokens[1],
        blocks=names.blocks,
        head=names.head,
    )
    return opened(card, "import torch") + code


TOOL = Tool(
    name="patch",
    title="Patch between two prompts",
    lead="Two prompts with different answers: which states carry the difference? Each state of one is put into the run "
    "of the other, by itself, to see how far the answer follows.",
    method="patch.prompts",
    fields=(
        Field("a", "Prompt A", "", "text", "The capital of France is"),
        Field("b", "Prompt B", "The same sentence about something else works best.", "text", "The capital of Italy is"),
        Field("answer_a", "Answer to A", "Empty: what the model says by itself.", required=False),
        Field("answer_b", "Answer to B", "Empty: what the model says by itself.", required=False),
    ),
    asked=_asked,
    form=_form,
    drawn=_drawn,
    trace=_trace,
)
