"""The Playground: real jobs on real small models, started by clicks; what is drawn is what the job's result says."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
import tiny_diffusion
from browsing import PHONE, Look, Looking, Shown
from gateway_keys import key_for
from PIL import Image
from playwright.sync_api import Page

import interlace

FACTS = "local/facts-gpt-mini"
ASSETS = Path(__file__).parent.parent / "assets"
FRANCE, CHINA = "France is located on the continent of", "China is located on the continent of"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[running.Running]:
    sources = {FACTS: ASSETS / "facts-gpt-mini", tiny_diffusion.SHAPES: tiny_diffusion.ASSET}
    models = [{"source": str(folder), "repo_id": name, "threads": 1} for name, folder in sources.items()]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=240) as server:
        yield server


@pytest.fixture(scope="module")
def key(server: running.Running) -> str:
    return key_for(server, "lab-a")


@pytest.fixture(scope="module")
def client(server: running.Running, key: str) -> Iterator[interlace.Client]:
    with interlace.connect(server.url, key) as client:
        yield client


def played(looking: Looking, tool: str, **fields: str) -> str:
    """Fill a tool's form in, run it, wait for its end: the job's id."""
    page = looking.page
    page.goto(f"/page/playground/{tool}")
    for label, value in fields.items():
        page.locator(f"#field-{label}").fill(value)
    page.get_by_role("button", name="Run").click()
    page.wait_for_url(re.compile(rf"/page/playground/{tool}/[0-9a-f]{{32}}$"))
    page.locator("#client-code").wait_for()
    page.locator("#played [role=status] strong").wait_for()
    return page.url.rpartition("/")[2]


def cells(page: Page, number: int = 0) -> list[list[str]]:
    """The rows of a figure's table, as they are shown."""
    table = page.locator("#played details").nth(number)
    table.locator("summary").click()
    rows = table.locator("tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def hints(page: Page, number: int = 0) -> list[str]:
    """What each field of a heat map says of itself."""
    return page.locator("#played svg").nth(number).locator("g > title").all_text_contents()


def ran(page: Page, code: str, key: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a text as it is shown; its names, and what it printed."""
    text = page.locator(code).inner_text()
    monkeypatch.setenv("NDIF_API_KEY", key)
    names: dict[str, Any] = {"__name__": "__main__"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, "copied.py", "exec"), names)
    return names | {"said": said.getvalue()}


def test_the_logit_lens(
    server: running.Running, key: str, client: interlace.Client, look: Look, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = look(server.url)
    looking.sign_in(key, "/page/playground")
    job = played(looking, "lens", prompt=FRANCE)
    page = looking.page
    result = client.follow_method(job).result()
    best = {(row[2], row[1]): row for row in result.table("readings").rows if row[3] == 0}
    drawn = hints(page)
    assert len(drawn) == len(best) == 6 * 9
    assert "“Europe”" in page.locator("#played [role=status]").inner_text()
    assert page.locator("#played svg text").filter(has_text="Europe").count() >= 1
    last = next(hint for hint in drawn if hint.startswith("5,  of: "))
    assert float(last.split()[3]) == pytest.approx(2.718281828 ** best[5, 8][5], abs=5e-3)
    assert [row[:3] for row in cells(page)][0][1:3] == ["F", "1"]
    looking.check()
    shown("playground-lens", looking)
    monkeypatch.chdir(tmp_path)
    again = ran(page, "#client-code", key, monkeypatch)
    assert again["result"] == result
    assert (tmp_path / "lens.png").stat().st_size > 5000
