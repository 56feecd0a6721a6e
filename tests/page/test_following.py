"""A job's page follows its events, and draws what it measures: a real browser, a worker's part by hand."""

import json
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
from browsing import PHONE, Keyed, Look, Looking, Shown, keyed_gateway
from gateway_process import KEY, Worker
from playwright.sync_api import Route

from interlace.methods.base import Table
from interlace.protocol.event import Progress
from interlace_server.page.curves import curves
from interlace_state.queue import Lease
from interlace_state.store import State

#: A method that draws no picture of its own.
TRAINING = {"method": "lake.sketch", "model": KEY.repo_id, "params": {}}
ROWS = [[step, 2.0 / (1 + step), f"w{step}"] for step in range(6)]
DRAWN = """one => {
  const canvas = one.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some(part => part > 0);
}"""

LOOKED_AT = """is => {
  Object.defineProperty(document, "hidden", { value: !is, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def start(keyed: Keyed) -> tuple[str, Lease]:
    """A job that runs."""
    answer = httpx.post(f"{keyed.gateway.url}/v1/jobs", json=TRAINING, headers={"ndif-api-key": keyed.ours}, timeout=60)
    return str(answer.json()["id"]), keyed.do(lambda state: Worker(state).start())


def tell(keyed: Keyed, lease: Lease, steps: Sequence[int]) -> None:
    async def told(state: Any) -> None:
        words = [Progress(step=one, of=9, metrics={"loss": 2.0 / (1 + one), "accuracy": one / 9}) for one in steps]
        assert await state.queue.record(lease, *words)

    keyed.do(told)


def finish(keyed: Keyed, lease: Lease) -> None:
    origin = {"job": lease.job.id, "method": "lake.sketch@1", "model": "m", "revision": "r", "dtype": "float32"}
    origin |= {"device": "cpu", "libraries": {}, "params": {}, "seed": 0}
    result = {"tables": [{"name": "curve", "columns": ["step", "loss", "word"], "rows": ROWS}]}
    said = {"status": "completed", "result": result, "provenance": origin, "cost": {}, "warnings": []}
    keyed.do(lambda state: Worker(state).complete(lease, json.dumps(said).encode()))


def never_asking(looking: Looking, *paths: str) -> None:
    """Take the polling out of all that the page is sent."""

    def without(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r"every \ds", "every 9999s", answer.text()))

    for path in paths:
        looking.page.route(path, without)


def test_what_happens_comes_without_asking(keyed: Keyed, look: Look, shown: Shown) -> None:
    job_id, lease = start(keyed)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours)
    never_asking(looking, f"**/page/jobs/{job_id}", f"**/page/jobs/{job_id}/live*")
    page.goto(f"/page/jobs/{job_id}")
    assert "every 9999s" in str(page.locator("#job").get_attribute("hx-trigger"))
    assert page.locator("#follow").is_hidden()
    tell(keyed, lease, [1, 2, 3])
    page.get_by_text("Step 3 of 9").wait_for()
    loss = page.get_by_role("img", name="Curve of loss over step: 0.5 at step 3")
    loss.wait_for()
    assert loss.evaluate(DRAWN)
    tell(keyed, lease, [4, 5])
    page.get_by_role("img", name="Curve of accuracy over step: 0.5556 at step 5").wait_for()
    looking.check()
    keyed.do(lambda state: Worker(state).log(lease, "a line"))
    page.locator("#log").get_by_text("a line").wait_for()
    finish(keyed, lease)
    page.locator(".tag.completed").wait_for()
    name = "Curve of loss over step: 0.3333 at step 5"
    table = page.locator("#job").get_by_role("img", name=name)
    table.wait_for()
    assert page.get_by_role("img", name=name).count() == 2  # the other is of what was measured on the way
    table.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert table.locator(".u-legend .u-value").all_inner_texts() == ["1", "1"]
    looking.check()
    shown("job-curves", looking)


def test_a_job_that_has_ended_shows_its_curves_on_a_phone_in_the_dark(keyed: Keyed, look: Look) -> None:
    job_id, lease = start(keyed)
    tell(keyed, lease, [1, 2, 3, 4, 2, 3])  # a second loop, or a second try
    finish(keyed, lease)
    looking = look(keyed.gateway.url, size=PHONE, dark=True)
    page = looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
    page.get_by_role("img", name="Curve of loss over step: 0.5 at step 3").wait_for()
    looking.fits()
    looking.check()


def test_a_tab_that_nobody_looks_at_follows_nothing_and_goes_on_where_it_was(keyed: Keyed, look: Look) -> None:
    job_id, lease = start(keyed)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
    tell(keyed, lease, [1, 2])
    page.get_by_role("img", name="Curve of loss over step: 0.6667 at step 2").wait_for()
    page.evaluate(LOOKED_AT, False)
    tell(keyed, lease, [3])
    with page.expect_request("**/events?after=*"):
        page.evaluate(LOOKED_AT, True)
    curve = page.get_by_role("img", name="Curve of loss over step: 0.5 at step 3")
    curve.wait_for()
    curve.focus()
    for _ in range(4):  # to its beginning: each step is there once
        page.keyboard.press("ArrowLeft")
    assert curve.locator(".u-legend .u-value").all_inner_texts() == ["1", "1"]
    finish(keyed, lease)
    page.locator(".tag.completed").wait_for()


def test_without_the_stream_the_page_asks(keyed: Keyed, look: Look) -> None:
    job_id, lease = start(keyed)
    looking = look(keyed.gateway.url)
    looking.page.route(f"**/page/jobs/{job_id}/events", lambda route: route.abort())
    page = looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
    tell(keyed, lease, [1, 2, 3])
    page.get_by_text("Step 3 of 9").wait_for()
    finish(keyed, lease)
    page.locator(".tag.completed").wait_for()


def test_the_stream_is_for_who_may_see_the_job_and_ends_with_it(keyed: Keyed, look: Look) -> None:
    job_id, lease = start(keyed)
    tell(keyed, lease, [1, 2])
    finish(keyed, lease)
    path = f"/page/jobs/{job_id}/events"
    ours, theirs = look(keyed.gateway.url), look(keyed.gateway.url)
    ours.sign_in(keyed.ours)
    theirs.sign_in(keyed.theirs)
    answer = ours.context.request.get(path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = [dict(line.split(": ", 1) for line in part.splitlines()) for part in answer.text().strip().split("\n\n")]
    assert [one["event"] for one in parts] == ["progress", "progress", "ended"]
    assert json.loads(parts[1]["data"])["metrics"] == {"loss": 2 / 3, "accuracy": 2 / 9}
    assert ours.context.request.get(path, headers={"last-event-id": parts[-1]["id"]}).status == 204
    assert theirs.context.request.get(path).status == 404
    with httpx.Client(base_url=keyed.gateway.url, headers={"ndif-api-key": keyed.ours}) as by_key:
        assert by_key.get(path).status_code == 303  # a key opens no page


def test_the_list_follows_without_asking(keyed: Keyed, look: Look) -> None:
    looking, watching = look(keyed.gateway.url), look(keyed.gateway.url)
    for one, key in ((looking, keyed.ours), (watching, keyed.admin)):
        page = one.sign_in(key)
        never_asking(one, "**/page/jobs", "**/page/jobs?*")
        with page.expect_response("**/page/jobs/events"):
            page.goto("/page/jobs")
        assert "every 9999s" in str(page.locator("#jobs").get_attribute("hx-trigger"))
    job_id, lease = start(keyed)
    rows = [one.page.locator("tr", has=one.page.locator(f"#to-{job_id}")) for one in (looking, watching)]
    for row in rows:
        row.locator(".tag.running").wait_for()
    tell(keyed, lease, [1, 2, 3])
    for row in rows:
        row.get_by_text("Step 3 of 9").wait_for()
    finish(keyed, lease)
    for row in rows:
        row.locator(".tag.completed").wait_for()
    looking.check()
    gone = httpx.delete(f"{keyed.gateway.url}/v1/jobs/{job_id}", headers={"ndif-api-key": keyed.ours}, timeout=60)
    assert gone.status_code == 204
    for row in rows:
        row.wait_for(state="detached")


def test_without_the_stream_the_list_asks(keyed: Keyed, look: Look) -> None:
    looking = look(keyed.gateway.url)
    looking.page.route("**/page/jobs/events", lambda route: route.abort())
    page = looking.sign_in(keyed.ours, "/page/jobs")
    job_id, lease = start(keyed)
    row = page.locator("tr", has=page.locator(f"#to-{job_id}"))
    row.locator(".tag.running").wait_for()
    finish(keyed, lease)
    row.locator(".tag.completed").wait_for()


def test_a_list_is_told_of_its_tenants_jobs(keyed: Keyed, look: Look) -> None:
    theirs = look(keyed.gateway.url)
    page = theirs.sign_in(keyed.theirs)
    assert theirs.context.request.get("/page/jobs/events?tenant=lab-a").status == 403
    page.evaluate("""() => {
      window.heard = 0;
      new EventSource("/page/jobs/events").addEventListener("changed", () => { window.heard += 1; });
    }""")
    theirs.until("window.heard === 1")  # it is there
    job_id, lease = start(keyed)
    tell(keyed, lease, [1, 2, 3])
    finish(keyed, lease)
    heard = keyed.do(lambda state: _changes(state, "lab-a", lambda: _forget(state, job_id)))
    assert heard == 2
    own = {"ndif-api-key": keyed.theirs}
    asked = httpx.post(f"{keyed.gateway.url}/v1/jobs", json=TRAINING, headers=own, timeout=60)
    theirs.until("window.heard >= 2")
    httpx.delete(f"{keyed.gateway.url}/v1/jobs/{asked.json()['id']}", headers=own, timeout=60)


async def _forget(state: State, job_id: str) -> None:
    await state.jobs.forget(await state.jobs.show(job_id, None))


async def _changes(state: State, tenant: str, meanwhile: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """How often a list hears of a change: first that it listens, then of what is done meanwhile."""
    heard = 0
    async with aclosing(state.events.changes(tenant, 0)) as changes:
        async for _ in changes:
            heard += 1
            if heard == 2:
                return heard
            await meanwhile()
    return heard


def test_more_lists_than_a_gateway_follows_ask(tmp_path: Path, redis_url: str, look: Look) -> None:
    with keyed_gateway(tmp_path, redis_url, page={"followed_lists": 0}, gateway={"drain_seconds": 0}) as keyed:
        looking = look(keyed.gateway.url)
        page = looking.sign_in(keyed.ours)
        with page.expect_response("**/page/jobs/events") as refused:
            page.goto("/page/jobs")
        assert refused.value.status == 429
        job_id, _ = start(keyed)
        page.locator(f"#to-{job_id}").wait_for()


def test_which_tables_are_curves() -> None:
    def columns(names: str, *rows: tuple[Any, ...]) -> list[int]:
        return curves(Table(name="t", columns=tuple(names.split()), rows=rows))

    assert columns("layer rank word", (0, 1.5, "a"), (1, 2, "b"), (2, 3.5, "c")) == [1]
    assert columns("layer rank", (0, 1.5), (0, 2), (1, 3.5)) == []  # two of a layer
    assert columns("layer rank", (0, 1.5), (1, 2)) == []
    assert columns("feature mean", (0, 1.5), (1, 2), (2, 3)) == []
    assert columns("step done", (0, True), (1, False), (2, True)) == []
    assert columns("step loss", (0, None), (1, 1.0), (2, 0.5)) == []
    assert columns("step") == []
