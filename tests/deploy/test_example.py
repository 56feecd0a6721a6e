"""The example configuration has every key, with its default, and says of each what the code says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from interlace_state.config import Config
from interlace_state.config_file import ConfigError, load
from interlace_state.settings.models import ModelConfig

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "interlace.yaml"


def _keys(section: type[BaseModel], before: str = "") -> Iterator[tuple[str, str | None]]:
    """Every key, dotted, and its documentation; that of a section is its first line."""
    for name, field in section.model_fields.items():
        inner = ModelConfig if name == "models" else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield f"{before}{name}", field.description or (inner.__doc__ or "").strip()
            yield from _keys(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", field.description


KEYS = dict(_keys(Config))


def _written(data: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in data.items():
        yield f"{before}{name}"
        inner = value[0] if value and isinstance(value, list) else value
        if isinstance(inner, dict):
            yield from _written(inner, f"{before}{name}.")


def test_every_key_is_there_and_no_other() -> None:
    assert sorted(_written(yaml.safe_load(EXAMPLE.read_text()))) == sorted(KEYS)


def test_it_loads_as_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert load(EXAMPLE, {}) == Config(models=(ModelConfig(source="smollm2-135m-instruct"),))


def _comments() -> dict[str, str]:
    """Each key in the order of the file, with the comment above it as one line."""
    found: list[str] = []
    comment: list[str] = []
    for line in EXAMPLE.read_text().splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        elif re.match(r"[ -]*\w+:", line):
            found.append(" ".join(comment))
            comment = []
        else:
            comment = []
    return dict(zip(_written(yaml.safe_load(EXAMPLE.read_text())), found, strict=True))


@pytest.mark.parametrize("key", KEYS)
def test_it_says_what_the_code_says(key: str) -> None:
    comment, described = _comments()[key], KEYS[key]
    assert comment
    if described and key != "models.source":
        for clause in re.split(r"[.;,]\s", described.rstrip(".")):
            assert " ".join(clause.split()) in comment


def test_no_is_a_word_there(tmp_path: Path) -> None:
    """YAML takes it for false."""
    (tmp_path / "interlace.yaml").write_text("redis: {fsync: no}\n")
    assert load(tmp_path / "interlace.yaml", {}).redis.fsync == "no"
    assert load(None, {"INTERLACE_REDIS__FSYNC": "no"}).redis.fsync == "no"
    (tmp_path / "interlace.yaml").write_text("redis: {fsync: yes}\n")
    with pytest.raises(ConfigError, match=r"`redis\.fsync`: .*'always', 'everysec' or 'no'"):
        load(tmp_path / "interlace.yaml", {})
