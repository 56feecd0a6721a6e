"""Drawings out of numbers: where they stand, what is escaped, what is refused."""

import re
import struct
from math import nan

import pytest
import safetensors.torch
import torch

from interlace.protocol.errors import InvalidArtifact
from interlace_server.page.grids import grids_of
from interlace_server.page.svg import MOST_CELLS, MOST_ROWS, Cell, Table, heat_map, line_chart, shortened


def test_a_heat_map() -> None:
    cells = {(0, 0): Cell(1.0, "<b>"), (0, 1): Cell(0.5), (1, 0): Cell(-0.25), (1, 1): Cell(nan)}
    svg = heat_map(["x", '"y"'], ["up", "down"], cells, says='<says> "it"', most=1.0, unit="nats")
    assert re.findall(r'<rect class="(\w+)".*?fill-opacity="([\d.]+)"', svg) == [
        ("hot", "1.000"),
        ("hot", "0.500"),
        ("cold", "0.250"),
        ("hot", "0.000"),
    ]
    assert "<title>up, x: 1 nats</title>" in svg
    assert "&lt;b&gt;" in svg
    assert "<b>" not in svg
    assert 'aria-label="&lt;says&gt; &#34;it&#34;"' in svg
    assert "style=" not in svg
    with pytest.raises(ValueError, match="cells; at most"):
        heat_map(["x"] * MOST_CELLS, ["a", "b"], {}, says="")


def test_words_are_readable_on_their_colour() -> None:
    """Between pale and strong no ink can be read, so that a field with a word is the one or the other."""
    for strength in (0.0, 0.3, 0.45, 0.5, 0.55, 0.6, 0.9):
        svg = heat_map(["x"], ["y"], {(0, 0): Cell(strength, "word")}, says="", most=1.0)
        opacity = float(re.findall(r'fill-opacity="([\d.]+)"', svg)[0])
        assert opacity <= 0.42 or opacity >= 0.62
        assert ('class="over"' in svg) == (opacity >= 0.62)


def test_a_line_chart() -> None:
    svg = line_chart({"one": [(0, 0), (2, 4), (1, nan)], "two": [(0, 1)]}, says="", x="x", y="y", quiet=["two"])
    points = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', svg)
    assert [kind for kind, _ in points] == ["line0", "quiet"]
    places = [tuple(map(float, one.split(","))) for one in points[0][1].split()]
    assert len(places) == 2
    assert places[0][0] < places[1][0]
    assert places[0][1] > places[1][1]
    with pytest.raises(ValueError, match="nothing to draw"):
        line_chart({"one": [(nan, 1)]}, says="", x="", y="")


def test_a_long_table_says_what_it_leaves_out() -> None:
    short = Table("rows", ("n",), [(1,)])
    assert short.bounded() is short
    long = Table("rows", ("n",), [(number,) for number in range(MOST_ROWS + 1)]).bounded()
    assert (long.caption, len(long.rows)) == ("rows: the first 2,000 of 2,001 rows", MOST_ROWS)


def test_labels_show_blanks() -> None:
    assert [shortened(one) for one in (" of", "\n", " ", "", "a" * 30)] == ["of", "⏎", "␣", "", "a" * 17 + "…"]


def test_tables_out_of_a_file() -> None:
    tensors = {"grid": torch.arange(6.0).view(2, 3), "row": torch.ones(3), "whole": torch.ones(2, 2, dtype=torch.int32)}
    assert grids_of(safetensors.torch.save(tensors), "data") == {"grid": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}
    with pytest.raises(InvalidArtifact, match="no safetensors file"):
        grids_of(struct.pack("<Q", 1 << 40), "data")
