"""Each page on a phone in the dark, and by the keyboard alone."""

from typing import Any

import httpx
import pytest
from browsing import PHONE, Keyed, Look, Looking
from gateway_process import KEY
from playwright.sync_api import Route
from uploads import upload

#: What the Tab key must come to: what can be seen, of a group of radio buttons the first.
STOPS = """() => {
  const seen = new Set();
  return [...document.querySelectorAll(
    "a[href], button, input, select, textarea, summary, [tabindex='0']")].filter(one => {
      const group = one.type === "radio" ? one.name : null;
      if (one.disabled || one.type === "hidden" || !one.checkVisibility() || seen.has(group)) return false;
      if (group) seen.add(group);
      return true;
    }).map((one, at) => one.dataset.stop = String(at)).length;
}"""
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  return [one.dataset.stop ?? "", style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0];
}"""

#: Lists of which a phone shows no cell without scrolling sideways.
SIDEWAYS = """() => [...document.querySelectorAll(".stacked")].filter(one =>
  one.closest(".scroll").scrollWidth > one.closest(".scroll").clientWidth).map(one => one.outerHTML.slice(0, 200))"""
#: Where the words of the header, of the content and of the footer begin.
LEFTS = """() => [".brand", "h1", "footer"].map(name => {
  const range = document.createRange();
  range.selectNodeContents(document.querySelector(name));
  return range.getBoundingClientRect().left;
})"""


@pytest.fixture(scope="module")
def paths(keyed: Keyed) -> list[str]:
    """All pages that somebody may open, with something on each."""
    ids = [upload(keyed.gateway.url, key=keyed.admin, name=f"adapter {n}", model=KEY.repo_id) for n in "ab"]
    first, second = (str(answer.json()["id"]) for answer in ids)
    body = {"method": "lens.logit", "model": KEY.repo_id, "params": {"prompts": ["The Eiffel Tower"]}}
    answer = httpx.post(f"{keyed.gateway.url}/v1/jobs", json=body, headers={"ndif-api-key": keyed.admin}, timeout=60)
    return [
        "/",
        "/page/playground",
        "/page/jobs",
        f"/page/jobs/{answer.json()['id']}",
        "/page/lake",
        "/page/lake?q=kind:peft",
        f"/page/lake/{first}",
        f"/page/lake/compare?a={first}&b={second}",
        "/page/keys",
        "/page/admin",
        "/page/admin/tenants",
        "/page/admin/tenants/lab-a",
        "/page/admin/audit",
    ]


def test_on_a_phone_in_the_dark(keyed: Keyed, look: Look, paths: list[str]) -> None:
    looking = look(keyed.gateway.url, size=PHONE, dark=True)
    for path in paths:
        looking.sign_in(keyed.admin, path)
        looking.fits()
        assert looking.page.evaluate(SIDEWAYS) == [], path
        looking.check()


@pytest.mark.parametrize("width", [390, 1900])
def test_header_content_and_footer_begin_at_the_same_place(keyed: Keyed, look: Look, width: int) -> None:
    looking = look(keyed.gateway.url, size={"width": width, "height": 800})
    looking.sign_in(keyed.admin, "/page/admin")
    looking.fits()
    lefts = looking.page.evaluate(LEFTS)
    assert max(lefts) - min(lefts) < 1, lefts
    assert (lefts[0] > 300) == (width > 1000), lefts  # in a wide window all are in its middle


def test_the_tab_key_comes_to_everything_and_one_sees_where(keyed: Keyed, look: Look, paths: list[str]) -> None:
    looking = look(keyed.gateway.url)
    looking.page.route("**/*", without_swaps)
    for path in paths:
        page = looking.sign_in(keyed.admin, path)
        stops = page.evaluate(STOPS)
        assert stops > 5, path
        come = walked(looking, stops)
        assert [stop for stop, _ in come] == [str(one) for one in range(stops)], path
        assert all(is_seen for _, is_seen in come), path


def without_swaps(route: Route) -> None:
    """What follows by itself may change in the middle of a walk."""
    if "hx-request" in route.request.headers:
        route.abort()
    else:
        route.continue_()


def walked(looking: Looking, stops: int) -> list[tuple[str, bool]]:
    found: list[Any] = []
    for _ in range(stops):
        looking.page.keyboard.press("Tab")
        found.append(looking.page.evaluate(FOCUSED))
    return [(str(stop), bool(is_seen)) for stop, is_seen in found]


def test_two_are_compared_by_the_keyboard_alone(keyed: Keyed, look: Look, paths: list[str]) -> None:
    page = look(keyed.gateway.url).sign_in(keyed.admin, "/")
    page.get_by_role("link", name="Lake").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/page/lake")
    page.get_by_label("Search").focus()
    page.keyboard.type("adapter kind:peft")
    page.keyboard.press("Enter")
    page.wait_for_url("**kind%3Apeft")
    page.locator("input[name=a]").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.locator("input[name=b]").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")  # a form is sent from any of its fields
    page.wait_for_url("**/page/lake/compare**")
    assert page.get_by_role("region", name="What differs").locator("tbody tr").count() > 0
