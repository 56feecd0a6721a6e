"""The figures of `families.py` as a table in Markdown, the papers' beside them."""

from collections.abc import Mapping
from typing import Any

_MODELS = ("facts-gpt", "facts-mamba", "planted-gpt", "planted-mamba")
_HEAD = (
    "",
    "GPT-2, facts",
    "Mamba, facts",
    "GPT-2, planted names",
    "Mamba, planted names",
    "published, transformer",
    "published, Mamba-2.8b",
)
#: What a row is called, its measure, what GPT-2 XL (Pythia 2.8b for LRE) and Mamba-2.8b have.
_ROWS = (
    (
        "tracing: the subject's last token, best block",
        "trace.subject",
        ".087 of .186 (GPT-2 XL, noise)",
        ".55 to .60, blocks 22 to 42 of 64",
    ),
    ("- the prompt's last token, that block", "trace.last", "", "0 up to block 43"),
    ("- the block from which the prompt's last token carries .8", "trace.carries", "", "47 of 64"),
    ("ROME: ES", "rome.ES", "1.00 (GPT-2 XL)", "1.00 (`mixer_out`, 15)"),
    ("- PS", "rome.PS", ".964", ".945"),
    ("- NS", "rome.NS", ".754", ".877"),
    ("- S", "rome.S", ".892", ".938"),
    ("- other facts of the subject kept", "rome.other_relations", "not compared", "not compared"),
    ("- unrelated facts kept", "rome.unrelated", "not compared", "not compared"),
    ("- with a random key: ES", "random.ES", "not compared", "not compared"),
    ("- with a random key: unrelated facts kept", "random.unrelated", "not compared", "not compared"),
    ("- unedited: ES", "rome.before.ES", "", ".02"),
)
_RELATIONS = (
    ("a continent of a country", "continent"),
    ("a language of a country", "country_language"),
    ("a job of a person", "job"),
    ("a birth city of a person", "born_in"),
    ("what the last name tells", "structured"),
)
_CUTS = (
    ("knockout: the subject, worst window", "cut.subject", "not compared", "-.75 to -.80, blocks 43 to 48"),
    ("- all other words before the last", "cut.not_subject", "not compared", "-.65 in block 12, -.62 in 21"),
)


#: Rows that say the place and n, which hold for the rows below them, too.
_FULL = {"trace.subject", "rome.ES", "random.ES", "cut.subject", "cut.not_subject"}


def table(every: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [_HEAD, ("---",) * len(_HEAD)]
    for name, measure, *published in _ROWS:
        rows.append((name, *(_cell(every[model].get(measure), measure in _FULL) for model in _MODELS), *published))
    for at, (name, relation) in enumerate(_RELATIONS):
        cells = []
        for model in _MODELS:
            pair = [every[model].get(f"lre.{relation}.{one}") for one in ("faithfulness_crossed", "bias_only")]
            said = (
                f"{_cell(pair[0])} / {_short(pair[1]['value'])}; n {pair[0]['seeds']} x {pair[0]['n']}"
                if pair[0] and pair[1]
                else ""
            )
            cells.append(said)
        papers = ("about 10 of 26 above .5 (Pythia 2.8b)", "about 10 of 26 above .5") if not at else ("", "")
        rows.append((f"LRE: faithful / b alone, {name}", *cells, *papers))
    for name, measure, *published in _CUTS:
        rows.append((name, *(_cell(every[model].get(measure), measure in _FULL) for model in _MODELS), *published))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(one: Mapping[str, Any] | None, full: bool = False) -> str:
    """The value, its interval in brackets or its range over seeds; if ``full``, the place and of how many."""
    if one is None:
        return ""
    said = _short(one["value"])
    if one.get("ci95"):
        said += f" [{_short(one['ci95'][0])}, {_short(one['ci95'][1])}]"
    if one.get("range"):
        low, high = one["range"]
        said += f" ({_short(low)} to {_short(high)})" if _short(low) != _short(high) else ""
    if not full:
        return said
    seeds = f"{one['seeds']} x " if one.get("seeds") else ""
    return said + (f"; {one['where']}" if one.get("where") else "") + f"; n {seeds}{one['n']}"


def _short(value: float) -> str:
    """Two digits, no nought before the point."""
    if isinstance(value, int):  # a block
        return str(value)
    said = f"{value + 0.0:.2f}"
    said = "0" if said in ("0.00", "-0.00") else said
    return said.replace("0.", ".", 1) if said.startswith(("0.", "-0.")) else said
