"""Plain lines where nobody looks, rich ones on a terminal."""

import io
import os
import pty
import re

import pytest

from interlace_deploy.screen import Screen, show_table


def test_plain_progress() -> None:
    output = io.StringIO()
    screen = Screen(output)
    with screen.part("redis") as details:
        details.append("9.1.2")
        screen.say("[one line]")
    said, part = output.getvalue().splitlines()
    assert said == "[one line]"
    assert re.fullmatch(r"redis +\d+\.\d s +9\.1\.2", part)  # however long it took


def test_a_part_that_fails_is_not_said_to_be_done() -> None:
    output = io.StringIO()
    with pytest.raises(OSError, match="no"), Screen(output).part("redis"):
        raise OSError("no")
    assert output.getvalue() == ""


def test_progress_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        screen = Screen(terminal)
        with screen.part("redis"), screen.part("gateway"):
            screen.say("[one line]")
        shown = ""
        while not re.search(r"gateway {4,}\d+\.\d s", shown):
            shown += os.read(ours, 1 << 16).decode(errors="replace")
    os.close(ours)
    assert "starting redis" in shown
    assert "[one line]" in shown


def test_a_reader_that_is_gone_stops_nothing() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    output = os.fdopen(theirs, "w", buffering=1)
    Screen(output).say("to nobody")
    with pytest.raises(BrokenPipeError):
        output.close()


def test_a_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "size"), [("a", "1"), ("longer", "")])
    assert capsys.readouterr().out == "name    size\na       1\nlonger\n"
