"""What is said of an entry of the lake, in words."""

from typing import Any

import pytest

from interlace.protocol.lake import Measured, plain


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("mit", "mit"),
        (None, "null"),
        (["Köln", 1], '["Köln", 1]'),
        ({"value": "x", "unit": "1"}, '{"value": "x", "unit": "1"}'),
        (Measured(name="loss", value=0.123456).model_dump(), "0.1235"),
        (Measured(name="time", value=12, unit="ms", n=30).model_dump(), "12 ms (n = 30)"),
        (
            Measured(name="accuracy", value=0.9, n=7, ci95=(0.812345, 0.95)).model_dump(mode="json"),
            "0.9 (n = 7, 95 % in 0.8123 to 0.95)",
        ),
    ],
)
def test_a_statement_in_words(value: Any, words: str) -> None:
    assert plain(value) == words
