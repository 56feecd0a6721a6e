"""How the pages write numbers and moments."""

import json
import time
from typing import Any

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
NOTHING = "–"


def moment(seconds: float | None) -> str:
    """Unix time as UTC, to the second."""
    return NOTHING if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def machine_moment(seconds: float) -> str:
    """As HTML's `datetime` wants it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.3g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return NOTHING
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def number(value: float | int | str | bool | None) -> str:
    """A cell of a table: a float to four digits, what is no number as it is."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def plain(value: Any) -> str:
    """A recorded value: a text as it is, what was measured as a sentence, anything else as JSON."""
    if isinstance(value, dict) and {"value", "unit"} <= value.keys() and isinstance(value["value"], int | float):
        return _measured(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _measured(of: dict[str, Any]) -> str:
    unit = "" if of["unit"] == "1" else f" {of['unit']}"
    ci95 = of.get("ci95")
    more = (
        "" if of.get("n") is None else f"n = {of['n']}",
        "" if ci95 is None else f"95 % in {ci95[0]:.4g} to {ci95[1]:.4g}",
    )
    return f"{of['value']:.4g}{unit}" + (f" ({', '.join(filter(None, more))})" if any(more) else "")
