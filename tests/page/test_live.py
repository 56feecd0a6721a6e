"""The pages of a whole Interlace: its own command, a trained model, jobs that a worker runs. It asks for no key."""

from collections.abc import Iterator
from pathlib import Path

import gateway_process
import httpx
import pytest
import running
import small_models
import subprocess_client
import tiny
from browsing import PHONE, Look, Shown

FACTS = "lab/facts-gpt-mini"
PROMPT = "Kasimir Quackenbush was born in the city of"
LENS = {"prompts": [PROMPT], "positions": list(range(-6, 0)), "targets": [" Toronto"]}
_SECONDS = 240.0


@pytest.fixture(scope="module")
def server(home: Path, tiny_models: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "models": [{"source": str(small_models.FACTS_GPT), "repo_id": FACTS, "threads": 1}],
        "gateway": {"port": 0, "drain_seconds": 0},
    }
    with running.interlace(home, configuration, seconds=_SECONDS) as server:
        yield server


def test_the_lines_of_the_first_page_run_as_they_stand(
    server: running.Running, look: Look, shown: Shown, tmp_path: Path
) -> None:
    looking = look(server.url)
    page = looking.page
    page.goto("/")
    page.locator(".tag.ready, .tag.idle").first.wait_for()
    shown("home", looking)
    looking.check()
    script = tmp_path / "pasted.py"
    script.write_text(page.locator("#lines").inner_text())
    nowhere = {"NDIF_HOST": "", "HF_ENDPOINT": "http://127.0.0.1:1"}  # the lines say it themselves
    assert subprocess_client.run(server.url, script, environ=nowhere).splitlines()[-1] == "(1, 11, 2048)  Paris"


def test_a_method_runs_and_is_drawn(server: running.Running, look: Look, shown: Shown) -> None:
    body = {"method": "lens.logit", "model": FACTS, "params": LENS}
    job = httpx.post(f"{server.url}/v1/jobs", json=body, timeout=60).json()
    looking = look(server.url)
    page = looking.page
    page.goto(f"/page/jobs/{job['id']}")
    page.locator(".tag.completed").wait_for()
    looking.until("document.querySelector('img.picture')?.naturalWidth > 300")
    rows = httpx.get(f"{server.url}/v1/jobs/{job['id']}/result", timeout=60).json()["result"]["tables"][0]["rows"]
    said = [cell for row in rows for cell in row if isinstance(cell, str)]
    told = page.get_by_role("region", name="Table").first.inner_text()
    assert " Toronto" in said
    assert "Toronto" in told
    looking.check()
    shown("job", looking)
    page.goto("/page/jobs")
    page.get_by_role("link", name=job["id"][:8]).wait_for()
    shown("jobs", looking)


def test_a_model_comes_and_goes(server: running.Running, look: Look, shown: Shown) -> None:
    """What an operator does on one page is seen on another, which follows by itself."""
    looking, watching = look(server.url), look(server.url)
    watching.page.goto("/")
    page = looking.page
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/page/admin")
    page.get_by_label("Hub id").fill(tiny.LLAMA)
    page.get_by_role("button", name="Deploy").click()
    card = watching.page.locator("li.card", has_text=tiny.LLAMA)
    card.locator(".tag.ready, .tag.idle").wait_for(timeout=_SECONDS * 1000)
    page.goto("/page/admin")
    shown("admin", looking)
    page.get_by_role("button", name=f"Evict {tiny.LLAMA}").click()
    card.locator(".tag.evicted").wait_for(timeout=_SECONDS * 1000)
    watching.check()


def test_pictures_for_the_documentation(server: running.Running, look: Look, shown: Shown) -> None:
    looking = look(server.url)
    for path, name in (
        ("/page/keys", "keys"),
        ("/page/admin/tenants", "admin-tenants"),
        ("/page/admin/tenants/local", "admin-tenant"),
        ("/page/admin/audit", "admin-audit"),
    ):
        looking.page.goto(path)
        looking.check()
        shown(name, looking)
    phone = look(server.url, size=PHONE, dark=True)
    phone.page.goto("/")
    phone.page.locator("[data-model]").first.wait_for()
    phone.fits()
    shown("home-phone", phone)


def test_pages_can_be_left_out(tmp_path: Path, redis_url: str) -> None:
    with gateway_process.running(tmp_path, redis_url, page={"enabled": False}) as gateway:
        assert gateway.get("/").status_code == 404
        assert gateway.get("/page/jobs").status_code == 404
