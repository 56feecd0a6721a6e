"""Causal tracing: which states bring a fact back where the subject's embeddings are drowned in noise."""

from collections.abc import Sequence
from typing import Any

from interlace.methods.tracing.spec import TracingResult
from interlace.protocol.errors import InvalidRequest
from interlace_server.page.svg import Cell, Figure, Table, heat_map, shortened
from interlace_server.page.tools.base import Asked, Drawn, Extra, Field, Form, Tool, text, whole, written
from interlace_server.page.tools.families import names_of, opened
from interlace_state.models import ModelCard

_STATE = "resid_post"
_CODE = """
prompt, subject, samples = {prompt}, {subject}, {samples}
encoded = model.tokenizer(prompt, return_offsets_mapping=True)
start = prompt.rindex(subject)
inside = [
    at for at, (begin, end) in enumerate(encoded.offset_mapping)
    if begin < start + len(subject) and end > start and prompt[begin:end].strip()
]
first, last, tokens = inside[0], inside[-1], len(encoded.input_ids)
ids = sorted({{encoded.input_ids[at] for at in inside}})

with model.session(remote=True):
    with model.trace(prompt):
        weight = {embed}.weight
        clean = [block.output[0] for block in {blocks}]
        logits = {head}.output[0, -1].float()
        answer = {answer}
        whole = logits.softmax(-1)[answer].save()
    sigma = 3.0 * weight[torch.tensor(ids)].float().std()
    noise = sigma * torch.randn(
        samples, last + 1 - first, weight.shape[1], generator=torch.Generator().manual_seed({seed} * 1_000_003)
    )
    with model.trace([prompt] * samples):
        {embed}.output[:, first : last + 1] += noise
        drowned = {head}.output[:, -1].float().softmax(-1)[:, answer].mean().save()
    back = torch.zeros(len(clean), tokens).save()
    for layer in range(len(clean)):
        for at in range(tokens):
            with model.trace([prompt] * samples):
                {embed}.output[:, first : last + 1] += noise
                {blocks}[layer].output[:, at] = clean[layer][at]
                score = {head}.output[:, -1].float().softmax(-1)[:, answer].mean()
                back[layer, at] = (score - drowned) / (whole - drowned)

print("clean", float(whole), "with noise", float(drowned))
print([model.tokenizer.decode(one) for one in encoded.input_ids])
for layer in reversed(range(len(back))):
    print(layer, [round(value, 2) for value in back[layer].tolist()])
"""


def _asked(form: Form) -> Asked:
    prompt, subject = text(form, "prompt", "Prompt"), text(form, "subject", "Subject").strip()
    if subject not in prompt:
        raise InvalidRequest(f"The subject {subject[:64]!r} does not stand in the prompt: copy it from there.")
    one: dict[str, Any] = {"text": prompt, "subject": subject}
    if answer := form.get("answer", "").strip():
        one["answer"] = answer
    return {
        "prompts": [one],
        "samples": whole(form, "samples", "Samples of noise"),
        "filter_known": False,
        "least_effect": 0.0,
    }


def _form(asked: Asked) -> dict[str, str]:
    one = asked["prompts"][0]
    return {
        "prompt": str(one["text"]),
        "subject": str(one["subject"]),
        "answer": str(one.get("answer") or ""),
        "samples": str(asked["samples"]),
    }


def _drawn(result: TracingResult, asked: Asked, extra: Extra) -> Drawn:
    told: tuple[Any, ...] = result.table("prompts").rows[0]
    answer, clean, drowned = str(told[2]), float(told[3] or 0), float(told[4] or 0)
    grid = extra.grids.get(f"0.{_STATE}")
    if grid is not None:
        tokens = [str(one) for one in extra.config["tokens"][0]]
        layers, columns = len(grid[0]), tokens
        cells = {(layers - 1 - layer, at): float(row[layer]) for at, row in enumerate(grid) for layer in range(layers)}
    else:  # its artifact is gone: what the classes of tokens have
        rows: list[tuple[Any, ...]] = [row for row in result.table("aie").rows if row[0] == _STATE and not row[1]]
        columns = list(dict.fromkeys(str(row[2]).replace("_", " ") for row in rows))
        layers = 1 + max(int(row[3]) for row in rows)
        cells = {
            (layers - 1 - int(row[3]), columns.index(str(row[2]).replace("_", " "))): float(row[4] or 0) for row in rows
        }
    early = {key: value for key, value in cells.items() if key[1] < len(columns) - 1} or cells
    top = max(early, key=lambda key: early[key])
    says = (
        f"“{shortened(answer)}” has the probability {clean:.2f}, and {drowned:.2f} where the subject is drowned in "
        f"noise. Before the last token, most of it comes back at “{shortened(columns[top[1]])}” after block "
        f"{layers - 1 - top[0]} ({early[top]:.0%})."
    )
    names = [str(layer) for layer in reversed(range(layers))]
    svg = heat_map(
        columns,
        names,
        {key: Cell(value) for key, value in cells.items()},
        says="Heat map: how much of the answer each restored state brings back. " + says,
        x="the prompt's tokens",
        y="block",
        most=1.0,
        unit="of the answer's probability",
    )
    table = Table("What comes back", ("block", "token", "share"), _rows(cells, columns, layers))
    note = "Each field: this one state is put back as it was without noise. 1 is all of the answer, 0 nothing."
    return Drawn(says, [Figure("Where the fact comes back", says, svg, table, note)])


def _rows(cells: dict[tuple[int, int], float], columns: Sequence[str], layers: int) -> list[tuple[int, str, float]]:
    return [(layers - 1 - row, columns[at], value) for (row, at), value in sorted(cells.items())]


def _trace(card: ModelCard, asked: Asked, seed: int) -> str | None:
    names = names_of(card)
    if names is None:
        return None
    one = asked["prompts"][0]
    said = one.get("answer")
    answer = "int(logits.argmax())" if not said else f"model.tokenizer({written(f' {said}')}).input_ids[0]"
    code = _CODE.format(
        prompt=written(one["text"]),
        subject=written(one["subject"]),
        samples=asked["samples"],
        answer=answer,
        seed=seed,
        blocks=names.blocks,
        head=names.head,
        embed=names.embed,
    )
    return opened(card, "import torch") + code


TOOL = Tool(
    name="trace",
    title="Causal trace",
    lead="Where does a fact sit? The subject of a sentence is drowned in noise, so that the model no longer knows the "
    "answer; then one state at a time is put back, to see which ones bring it back.",
    method="trace.causal",
    fields=(
        Field("prompt", "Prompt", "It ends where the answer should come.", "text", "The capital of France is"),
        Field("subject", "Subject", "What the fact is about, as it stands in the prompt.", value="France"),
        Field("answer", "Answer", "Empty: what the model says by itself.", required=False),
        Field(
            "samples", "Samples of noise", "More are slower and smoother.", "number", "5", least=1, most=50, step="1"
        ),
    ),
    asked=_asked,
    form=_form,
    drawn=_drawn,
    trace=_trace,
    reads="data",
)
