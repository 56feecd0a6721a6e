"""Pictures out of numbers, as SVG that is written here: heat maps and line charts.

Colours are classes of `svg.css`, so that they follow light and dark; how strong one is, is its opacity. Whatever is
drawn may be hostile: every text is escaped, every number is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup, escape

MOST_CELLS = 6000
MOST_ROWS = 2000
_MOST_POINTS = 2000
_CHARACTER = 7.3  # pixels of one, at the size that is used
_LONGEST = 18  # characters of a label
_ROW = 26
_PALE = 0.42  # up to here dark ink is read on it in light, and light ink in dark
_STRONG = 0.62  # from here the other ink is


@dataclass(frozen=True)
class Cell:
    """One field of a heat map."""

    value: float
    #: Written into it.
    text: str = ""


@dataclass(frozen=True)
class Table:
    """The numbers of a drawing."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[float | int | str | bool | None]]

    def bounded(self) -> "Table":
        """With no more rows than a page holds; the caption says so."""
        if len(self.rows) <= MOST_ROWS:
            return self
        return Table(
            f"{self.caption}: the first {MOST_ROWS:,} of {len(self.rows):,} rows", self.columns, self.rows[:MOST_ROWS]
        )


@dataclass(frozen=True)
class Figure:
    """A drawing, what it says in a sentence, and its numbers."""

    title: str
    #: For whoever does not see it.
    says: str
    svg: Markup
    table: Table
    note: str = ""


def heat_map(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Mapping[tuple[int, int], Cell],
    *,
    says: str,
    x: str = "",
    y: str = "",
    most: float | None = None,
    unit: str = "",
) -> Markup:
    """``cells`` by (row, column), rows from the top. Strength is value / ``most``; below 0 the other colour."""
    if len(columns) * len(rows) > MOST_CELLS:
        raise ValueError(f"{len(columns) * len(rows)} cells; at most {MOST_CELLS} are drawn")
    top = most or max((abs(one.value) for one in cells.values()), default=1.0) or 1.0
    named = [shortened(one) for one in columns]
    inside = max((len(one.text) for one in cells.values()), default=0)
    width = max(26.0, _CHARACTER * min(inside, _LONGEST) + 10)
    steep = any(_CHARACTER * len(one) > width - 4 for one in named)
    left = 34 + _CHARACTER * max((len(shortened(one)) for one in rows), default=1)
    head = 14 + (_CHARACTER * 0.75 * max(map(len, named), default=1) if steep else _ROW * 0.7)
    whole = (left + width * len(columns) + (_CHARACTER * 6 if steep else 8), head + _ROW * len(rows) + 30)
    parts = [_opened(whole, says)]
    for at, name in enumerate(named):
        middle = left + width * (at + 0.5)
        turn = f' transform="rotate(-45 {middle:.1f} {head - 6:.1f})"' if steep else ""
        anchor = "start" if steep else "middle"
        parts.append(_text(middle, head - 6, name, "label", anchor, turn))
    for row, name in enumerate(rows):
        parts.append(_text(left - 6, head + _ROW * (row + 0.5) + 4, shortened(name), "label", "end"))
    for (row, column), cell in cells.items():
        where = f"{rows[row]}, {columns[column]}: {_number(cell.value)} {unit}".rstrip()
        parts.append(_cell(left + width * column, head + _ROW * row, width, cell, cell.value / top, where))
    parts.append(_text(left + width * len(columns) / 2, whole[1] - 8, x, "axis", "middle"))
    turn = f' transform="rotate(-90 12 {head + _ROW * len(rows) / 2:.1f})"'
    parts.append(_text(12, head + _ROW * len(rows) / 2, y, "axis", "middle", turn))
    return Markup("").join([*parts, Markup("</svg>")])


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], *, says: str, x: str, y: str, quiet: Sequence[str] = ()
) -> Markup:
    """Lines with a dot at each point, by name; those of ``quiet`` stand back. Each line's name is at its end."""
    points = [point for line in series.values() for point in line if all(map(isfinite, point))]
    if not points:
        raise ValueError("there is nothing to draw")
    if len(points) > _MOST_POINTS:
        raise ValueError(f"{len(points)} points; at most {_MOST_POINTS} are drawn")
    across, up = _span([one for one, _ in points]), _span([*(one for _, one in points), 0.0])
    left, top, wide, high = 70.0, 12.0, 420.0, 220.0
    parts = [_opened((left + wide + 120, top + high + 46), says)]

    def at(point: tuple[float, float]) -> tuple[float, float]:
        far = (point[0] - across[0]) / (across[1] - across[0]), (point[1] - up[0]) / (up[1] - up[0])
        return left + wide * far[0], top + high * (1 - far[1])

    for value in sorted({up[0], 0.0, up[1]}):
        level = at((across[0], value))[1]
        rule = Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        parts.append(rule.format(*_short(left, left + wide, level, level)))
        parts.append(_text(left - 8, level + 4, _number(value), "label", "end"))
    for value in sorted({point[0] for point in points}):
        parts.append(_text(at((value, 0.0))[0], top + high + 18, _number(value), "label", "middle"))
    for number, (name, line) in enumerate(series.items()):
        shown = sorted(point for point in line if all(map(isfinite, point)))
        kind = "quiet" if name in quiet else f"line{number % 3}"
        places = " ".join(",".join(_short(*at(point))) for point in shown)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, places))
        for point in shown:
            dot = Markup('<circle class="{}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>')
            parts.append(dot.format(kind, *_short(*at(point)), f"{name}, {_number(point[0])}: {_number(point[1])}"))
        if shown and kind != "quiet":
            end = at(shown[-1])
            parts.append(_text(end[0] + 8, end[1] + 4, shortened(name), f"label {kind}", "start"))
    parts.append(_text(left + wide / 2, top + high + 40, x, "axis", "middle"))
    turn = f' transform="rotate(-90 14 {top + high / 2:.1f})"'
    parts.append(_text(14, top + high / 2, y, "axis", "middle", turn))
    return Markup("").join([*parts, Markup("</svg>")])


def shortened(text: str, most: int = _LONGEST) -> str:
    """A token as a label: blanks that matter are seen, and it is not longer than ``most`` characters."""
    seen = text.replace("\n", "⏎").replace("\t", "⇥").strip() or ("␣" if text else "")
    return seen if len(seen) <= most else seen[: most - 1] + "…"


def _cell(left: float, top: float, width: float, cell: Cell, strength: float, where: str) -> Markup:
    strength = max(-1.0, min(1.0, strength)) if isfinite(strength) else 0.0
    opacity = abs(strength)
    if cell.text and _PALE < opacity < _STRONG:  # no ink can be read there
        opacity = _PALE if opacity < (_PALE + _STRONG) / 2 else _STRONG
    kind, ink = ("hot" if strength >= 0 else "cold"), ("over" if opacity >= _STRONG else "ink")
    box = Markup('<g><title>{}</title><rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"/>')
    drawn = box.format(where, kind, *_short(left, top, width - 1.5, _ROW - 1.5), f"{opacity:.3f}")
    if cell.text:
        middle = left + (width - 1.5) / 2
        drawn += _text(middle, top + _ROW / 2 + 4, shortened(cell.text), ink, "middle")
    return drawn + Markup("</g>")


def _opened(size: tuple[float, float], says: str) -> Markup:
    wide, high = _short(*size)
    opened = Markup('<svg class="drawing" role="img" width="{0}" height="{1}" viewBox="0 0 {0} {1}" aria-label="{2}">')
    return opened.format(wide, high, says)


def _text(x: float, y: float, words: str, kind: str, anchor: str, turn: str = "") -> Markup:
    opened = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}"{}>').format(
        kind, *_short(x, y), anchor, Markup(turn)
    )
    return opened + escape(words) + Markup("</text>")


def _short(*values: float) -> list[str]:
    return [f"{value:.1f}" for value in values]


def _number(value: float) -> str:
    return f"{value:.3g}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)
