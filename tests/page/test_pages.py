"""Home, Jobs, Keys and usage: a real browser clicks through them, and their numbers are the API's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from browsing import PHONE, Keyed, Look, Shown
from gateway_process import HEADERS, KEY, Worker, saved

from interlace.methods.shared.preview import preview
from interlace.protocol.event import Picture, Progress
from interlace.protocol.hosting import Moment, Phase
from interlace.protocol.model import ModelKey
from interlace_server.page import words
from interlace_state.models import ModelCard
from interlace_state.queue import Lease
from interlace_state.store import State

HTML = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
ARTIFACT = "0123456789abcdef"
LENS = {"method": "lens.logit", "model": KEY.repo_id, "params": {"prompts": ["The Eiffel Tower"]}}


def get(keyed: Keyed, path: str, key: str) -> Any:
    return httpx.get(f"{keyed.gateway.url}{path}", headers={"ndif-api-key": key}, timeout=60).json()


def post(keyed: Keyed, key: str) -> str:
    return str(keyed.gateway.post(headers={**HEADERS, "ndif-api-key": key}).json()["id"])


def run_method(keyed: Keyed, key: str, **changes: Any) -> str:
    answer = httpx.post(f"{keyed.gateway.url}/v1/jobs", json=LENS | changes, headers={"ndif-api-key": key}, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def envelope(job_id: str, rows: int = 12) -> bytes:
    """What a worker stores of a logit lens, with markup where a model may have written it."""
    readings = [[0, -1, layer, 0, HTML if layer == 0 else f" w{layer}", -1.0 - layer / 10] for layer in range(rows)]
    columns = ["prompt", "position", "layer", "rank", "token", "logprob"]
    result = {
        "layers": list(range(rows)),
        "entropy": [1.5] * rows,
        "metrics": [{"name": "accuracy", "value": 0.75, "unit": "fraction", "n": 4, "ci95": [0.5, 1.0]}],
        "tables": [{"name": "readings", "columns": columns, "rows": readings}],
    }
    origin = {"job": job_id, "method": "lens.logit@1", "model": "m", "revision": "r", "dtype": "float32"}
    origin |= {"device": "cpu", "libraries": {}, "params": {"prompts": [HTML]}, "seed": 0}
    made = [{"ref": f"artifact:{ARTIFACT}@{'0' * 64}", "kind": "data", "name": HTML, "size": 8}]
    more = {"provenance": origin, "artifacts": made, "cost": {}, "warnings": [HTML]}
    return json.dumps({"status": "completed", "result": result, **more}).encode()


def work(keyed: Keyed, part: Callable[[Worker], Any]) -> Any:
    return keyed.do(lambda state: part(Worker(state)))


async def start_with_words(worker: Worker) -> Lease:
    lease = await worker.start()
    await worker.log(lease, "first line", HTML)
    assert await worker.state.queue.record(lease, Progress(step=3, of=10, metrics={"loss": 0.25}))
    return lease


def test_home_says_what_the_api_says(keyed: Keyed, look: Look) -> None:
    ids = [post(keyed, keyed.ours) for _ in range(3)]
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours)
    card = page.locator(f'[data-model="{KEY.slug}"]')
    (view,) = [one for one in get(keyed, "/v1/models", keyed.ours)["models"] if one["model"] == KEY.repo_id]
    assert card.get_by_role("heading").inner_text() == view["model"]
    assert card.locator(".tag").first.inner_text() == view["phase"] == "ready"
    assert card.locator("[data-jobs]").get_attribute("data-jobs") == str(view["jobs"]) == "3"
    assert card.locator("[data-jobs]").inner_text() == "0 running, 3 waiting"
    for job_id in ids:
        httpx.delete(f"{keyed.gateway.url}/v1/jobs/{job_id}", headers={"ndif-api-key": keyed.ours}, timeout=60)
    card.get_by_text("0 running, 0 waiting").wait_for()  # without anybody's doing
    looking.check()


def test_the_lines_have_the_readers_own_key_when_asked(keyed: Keyed, look: Look) -> None:
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours)
    assert keyed.ours not in page.content()
    page.get_by_role("button", name="Show with my key").click()
    page.get_by_text(keyed.ours).wait_for()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    lines = page.evaluate("navigator.clipboard.readText()")
    compile(lines, "snippet", "exec")
    assert f'os.environ["NDIF_HOST"] = "{keyed.gateway.url}"' in lines
    assert f'os.environ["NDIF_API_KEY"] = "{keyed.ours}"' in lines
    assert f'"{KEY.repo_id}", task="text-generation"' in lines
    looking.check()


def test_a_key_for_some_models_sees_those(keyed: Keyed, look: Look) -> None:
    key = keyed.do(lambda state: state.tenants.mint("lab-d", models=["lab/other"]))[1]
    page = look(keyed.gateway.url).sign_in(key)
    page.get_by_text("Nothing is hosted that you may use.").wait_for()


def test_a_job_from_its_first_word_to_its_end(keyed: Keyed, look: Look) -> None:
    job_id = post(keyed, keyed.ours)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
    page.locator(".tag.queued").wait_for()
    lease = work(keyed, start_with_words)
    page.get_by_text("Step 3 of 10, loss 0.25").wait_for()
    assert page.get_by_role("progressbar").get_attribute("value") == "0.3"
    assert page.locator("#log").inner_text() == f"first line\n{HTML}\n"
    png = preview(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    work(keyed, lambda worker: worker.state.values.keep(job_id, 1, png))
    picture = Picture(number=1, title=HTML, step=3, size=len(png))
    assert work(keyed, lambda worker: worker.state.queue.record(lease, picture))
    page.locator("#shown img").wait_for()
    looking.until("document.querySelector('#shown img').naturalWidth > 100")
    assert page.locator("#shown figcaption").inner_text() == f"{HTML}, step 3"
    looking.check()
    whose = [
        httpx.get(f"{keyed.gateway.url}/v1/jobs/{job_id}/pictures/1", headers={"ndif-api-key": key}, timeout=60)
        for key in (keyed.ours, keyed.theirs, keyed.admin)
    ]
    assert [one.status_code for one in whose] == [200, 404, 404]
    assert (whose[0].content, whose[0].headers["content-type"]) == (png, "image/png")
    foreign = look(keyed.gateway.url)
    foreign.sign_in(keyed.admin, f"/page/jobs/{job_id}").locator(".tag.running, .tag.leased").first.wait_for()
    assert foreign.page.locator("#shown").count() == 0
    assert foreign.context.request.get(f"/page/jobs/{job_id}/shown.png").status == 404
    work(keyed, lambda worker: worker.complete(lease, saved(x=1)))
    page.locator(".tag.completed").wait_for()
    assert page.locator("#shown").count() == 0
    view = get(keyed, f"/v1/jobs/{job_id}", keyed.ours)
    figures = page.locator(".figures dd").all_inner_texts()
    cost = view["cost"]
    assert figures == [
        words.duration(cost["queued_seconds"]),
        words.duration(cost["runtime"]),
        words.duration(cost["cpu_seconds"]),
        words.size(cost["max_memory_usage"]),
        words.size(view["result_size"]),
    ]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the result").click()
    assert Path(download.value.path()).read_bytes() == saved(x=1)
    assert page.title() == f"Job {job_id[:8]} · Interlace"
    looking.check()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Forget").click()
    page.get_by_text("The job is forgotten").wait_for()
    answer = httpx.get(f"{keyed.gateway.url}/v1/jobs/{job_id}", headers={"ndif-api-key": keyed.ours}, timeout=60)
    assert answer.status_code == 404


def test_why_a_job_failed_is_in_the_list_and_all_of_it_on_its_page(keyed: Keyed, look: Look) -> None:
    job_id = post(keyed, keyed.ours)
    frames = "Traceback (most recent call last):\n" + '  File "a.py", line 1, in f\n    x = y\n' * 40
    raised = f"ValueError: {HTML} " + "x" * 3000
    text = f"{frames}{raised}\n\nLook at your prompt."

    async def fail(worker: Worker) -> None:
        await worker.end(await worker.start(), text)

    work(keyed, fail)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, "/page/jobs?state=error")
    row = page.locator("tbody tr", has_text=job_id[:8])
    row.locator(".tag.error").wait_for()
    assert row.locator(".why").inner_text() == raised[:159] + "…"
    looking.fits()
    page.goto(f"/page/jobs/{job_id}")
    assert page.get_by_role("status").inner_text() == f"error {raised[:159]}…"
    assert page.locator("#why").inner_text() == text
    assert page.locator("#advice").inner_text() == "Look at your prompt."
    box = page.locator("#advice").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < page.viewport_size["height"]  # type: ignore[index]
    looking.check()


def test_a_job_is_cancelled_when_that_is_confirmed(keyed: Keyed, look: Look) -> None:
    job_id = post(keyed, keyed.ours)
    page = look(keyed.gateway.url).sign_in(keyed.ours, f"/page/jobs/{job_id}")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel").click()
    assert get(keyed, f"/v1/jobs/{job_id}", keyed.ours)["state"] == "queued"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The job was told to end.").wait_for()
    assert get(keyed, f"/v1/jobs/{job_id}", keyed.ours)["state"] == "cancelled"


def test_a_methods_tables_and_its_picture(keyed: Keyed, look: Look, shown: Shown) -> None:
    """The picture is a real one: matplotlib has drawn the table that the worker stored."""
    job_id = run_method(keyed, keyed.ours)

    async def give(worker: Worker) -> None:
        await worker.complete(await start_with_words(worker), envelope(job_id))

    work(keyed, give)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
    picture = page.get_by_role("img", name="The picture that lens.logit")
    looking.until("document.querySelector('img.picture').complete")
    assert picture.evaluate("[image => image.naturalWidth > 100][0](document.querySelector('img.picture'))")
    table = page.get_by_role("region", name="Table readings")
    assert table.locator("tbody tr").count() == 12
    assert table.locator("tbody tr").first.locator("td").nth(4).inner_text() == HTML
    metric = page.get_by_role("region", name="Metrics").locator("tbody tr").inner_text()
    assert metric.split("\t") == ["accuracy", "all", "0.75", "fraction", "0.5 to 1", "4"]
    assert page.get_by_role("link", name=f"artifact:{ARTIFACT}").get_attribute("href") == f"/page/lake/{ARTIFACT}"
    page.get_by_text("How it was made").click()
    assert HTML in json.loads(page.get_by_label("Parameters").inner_text())["prompts"]
    assert page.title().startswith("Job ")
    looking.check()
    for path in ("", "/picture.png", "/result"):
        answer = looking.context.request.get(f"/page/jobs/{job_id}{path}")
        assert answer.status == 200, path
    other = look(keyed.gateway.url)
    other.sign_in(keyed.theirs)
    for path in ("", "/live", "/picture.png", "/result"):
        assert other.context.request.get(f"/page/jobs/{job_id}{path}").status == 404, path
    operator = look(keyed.gateway.url)
    operator.sign_in(keyed.admin, f"/page/jobs/{job_id}")
    operator.page.get_by_text("Its result is for its tenant alone.").wait_for()
    assert operator.context.request.get(f"/page/jobs/{job_id}/picture.png").status == 404


def test_a_result_that_cannot_be_drawn_leaves_its_numbers(keyed: Keyed, look: Look) -> None:
    job_id = run_method(keyed, keyed.ours)

    async def give(worker: Worker) -> None:
        data = json.loads(envelope(job_id))
        data["result"]["tables"][0]["rows"] = []
        await worker.complete(await worker.start(), json.dumps(data).encode())

    work(keyed, give)
    looking = look(keyed.gateway.url)
    looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
    assert looking.context.request.get(f"/page/jobs/{job_id}/picture.png").status == 404
    assert looking.page.get_by_role("region", name="Metrics").is_visible()
    assert [line["method"] for line in keyed.gateway.actions("picture_failed")] == ["lens.logit@1"]


def test_two_tenants_see_their_own_jobs_and_an_admin_all(keyed: Keyed, look: Look) -> None:
    mine, other = post(keyed, keyed.ours), post(keyed, keyed.theirs)
    seen: dict[str, set[str]] = {}
    for name, key in (("ours", keyed.ours), ("theirs", keyed.theirs), ("admin", keyed.admin)):
        looking = look(keyed.gateway.url)
        page = looking.sign_in(key, "/page/jobs")
        links = page.locator("tbody a").all()
        seen[name] = {str(link.get_attribute("href")).rpartition("/")[2] for link in links}
        assert seen[name] == {job["id"] for job in get(keyed, "/v1/jobs", key)["jobs"]}
        assert page.get_by_label("Tenant").count() == (1 if name == "admin" else 0)
    assert mine in seen["ours"]
    assert other not in seen["ours"]
    assert {mine, other} <= seen["admin"]
    assert looking.context.request.get("/page/jobs?tenant=lab-b").status == 200
    page.get_by_label("Tenant").fill("lab-b")
    page.get_by_label("State").select_option("queued")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**tenant=lab-b**")
    assert set(page.locator("tbody tr td:last-child").all_inner_texts()) == {"lab-b"}
    looking.check()
    page.get_by_label("Id").fill(mine)
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(f"**/page/jobs/{mine}")
    foreign = look(keyed.gateway.url)
    foreign.sign_in(keyed.ours)
    assert foreign.context.request.get("/page/jobs?tenant=lab-b").status == 403


def test_markup_of_models_is_text(keyed: Keyed, look: Look) -> None:
    async def host(state: State) -> None:
        key = ModelKey(repo_id="lab/markup")
        config = {"model_type": "gpt2"}
        await state.models.publish(ModelCard(key=key, commit="0" * 40, dtype=HTML, config=config, failure=HTML))
        await state.desired.say(key, Moment(phase=Phase.FAILED, text=HTML, at=0))

    keyed.do(host)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.admin)
    assert page.get_by_text(HTML).count() >= 1
    looking.page.goto("/page/admin")
    assert page.get_by_text(HTML).count() >= 1
    looking.page.goto("/page/nothing?x=" + HTML)
    looking.complaints.clear()  # Chromium tells of a 404
    assert page.title() == "404 · Interlace"
    for path in (f"/page/jobs?model={HTML}", f"/?model={HTML}&done={HTML}", f"/page/jobs?id={HTML}"):
        page.goto(path)
        assert "taken" not in page.title()
    assert [line for line in looking.complaints if "404" not in line] == []


def test_usage_is_the_sum_of_what_the_api_lists(keyed: Keyed, look: Look) -> None:
    job_id = post(keyed, keyed.ours)

    async def give(worker: Worker) -> None:
        while (await worker.state.jobs.show(job_id, None)).state == "queued":
            await worker.complete(await worker.start(), saved(x=1))

    work(keyed, give)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, "/page/keys")
    jobs = get(keyed, "/v1/jobs?limit=200", keyed.ours)["jobs"]
    figure = page.locator("[data-figure=jobs]")
    assert figure.inner_text() == str(len(jobs))
    for state in {job["state"] for job in jobs}:
        told = page.locator(f"[data-figure={state}]").inner_text()
        assert told == str(sum(job["state"] == state for job in jobs))
    seconds = page.locator("[data-figure=seconds]").get_attribute("title") or ""
    assert float(seconds.removesuffix(" s")) == pytest.approx(
        sum((job["cost"] or {}).get("runtime") or 0 for job in jobs)
    )
    limit = page.get_by_role("region", name="Limits").locator("tr", has_text="waiting_jobs").locator("td")
    assert limit.get_attribute("data-limit") == "10000"
    assert keyed.ours not in page.content()
    ids = page.get_by_role("region", name="Keys").locator("tbody th").all_inner_texts()
    assert len(ids) == 1
    assert ids[0].endswith("this one")
    looking.check()


def test_a_key_is_rotated_by_its_holder(keyed: Keyed, look: Look) -> None:
    old = keyed.do(lambda state: state.tenants.mint("lab-e"))[1]
    looking = look(keyed.gateway.url)
    page = looking.sign_in(old, "/page/keys")
    page.get_by_label("This key goes on working for").select_option("0")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Make a new key").click()
    fresh = page.locator("#secret").inner_text()
    assert re.fullmatch(r"il-[A-Za-z0-9_-]{43}", fresh)
    looking.check()
    page.get_by_role("link", name="Back").click()
    page.get_by_role("heading", name="Keys", exact=True).wait_for()  # still signed in, by the new one
    statuses = [
        httpx.get(f"{keyed.gateway.url}/whoami", headers={"ndif-api-key": key}, timeout=60).status_code
        for key in (old, fresh)
    ]
    assert statuses == [401, 200]


@pytest.mark.parametrize("size", [PHONE], ids=["phone"])
def test_every_page_on_a_phone_in_the_dark(keyed: Keyed, look: Look, size: dict[str, int]) -> None:
    job_id = post(keyed, keyed.admin)
    looking = look(keyed.gateway.url, size=size, dark=True)
    looking.sign_in(keyed.admin)
    paths = ["/", "/page/jobs", f"/page/jobs/{job_id}", "/page/keys", "/page/admin", "/page/admin/tenants"]
    paths += ["/page/admin/tenants/lab-a", "/page/admin/audit", f"/page/admin/model?name={KEY.slug}"]
    for path in paths:
        looking.page.goto(path)
        looking.fits()
        looking.check()
