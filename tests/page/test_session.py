"""Signing in, what is refused, how a visit ends: a real gateway, a real browser."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from browsing import PHONE, Keyed, Look, Shown

from interlace_server.doors import visitors
from interlace_state.keys import Keys
from interlace_state.store import State

FORM = {"sec-fetch-site": "same-origin"}


def client(keyed: Keyed, **headers: str) -> httpx.Client:
    """Without connections that stay open, which a server may close in the moment that they are used again."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=keyed.gateway.url, headers=headers, timeout=60, limits=limits)


def token_of(html: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', html)
    assert found is not None, html
    return found[1]


def signed_in(keyed: Keyed, key: str) -> tuple[httpx.Client, str]:
    """A client with the cookie of a visit, and its forms' token."""
    one = client(keyed, **FORM)
    token = token_of(one.get(visitors.SIGN_IN).text)
    answer = one.post(visitors.SIGN_IN, data={"key": key, "form_token": token})
    assert answer.status_code == 303, answer.text
    return one, token_of(one.get("/").text)


def test_sign_in_and_out(keyed: Keyed, look: Look, shown: Shown) -> None:
    looking = look(keyed.gateway.url)
    page = looking.page
    page.goto("/?look=1")
    assert page.get_by_role("heading", name="Sign in").is_visible()
    looking.check()
    shown("sign-in", looking)
    page.get_by_label("API key").fill("il-guess")
    page.keyboard.press("Enter")
    assert "knows no such key" in page.get_by_role("alert").filter(has_text="key").inner_text()
    looking.complaints.clear()  # Chromium tells of a 401
    looking.sign_in(keyed.ours, "/?look=1")
    assert page.locator(".who").inner_text().startswith("lab-a")
    assert page.get_by_role("link", name="Admin").count() == 0
    page.get_by_role("button", name="Sign out").click()
    assert page.get_by_role("status").inner_text() == "You have signed out."
    page.goto("/")
    assert page.get_by_role("heading", name="Sign in").is_visible()
    looking.check()


def test_by_keyboard_alone(keyed: Keyed, look: Look) -> None:
    page = look(keyed.gateway.url).sign_in(keyed.ours)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_link_from_another_site_brings_one_back(keyed: Keyed, look: Look) -> None:
    """The cookie is strict: the first request over such a link has none, and the page asks again."""
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours)
    page.goto("data:text/html,<title>chat</title>")
    page.set_content(f'<a href="{keyed.gateway.url}/?look=2">there</a>')
    page.get_by_role("link", name="there").click()
    page.get_by_role("heading", name="Models", exact=True).wait_for()


def test_the_cookie_and_what_redis_has(keyed: Keyed, look: Look) -> None:
    looking = look(keyed.gateway.url)
    looking.sign_in(keyed.ours)
    (cookie,) = [one for one in looking.context.cookies() if one["name"] == visitors.COOKIE]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert looking.page.evaluate("document.cookie") == ""

    async def everything(state: State) -> bytes:
        names = [name async for name in state.redis.scan_iter(Keys(keyed.gateway.config.redis.prefix).visit("*"))]
        assert names
        lifetimes = [await state.redis.ttl(name) for name in names]
        assert all(0 < seconds <= 12 * 3600 for seconds in lifetimes)
        return b" ".join([*names, *[await state.redis.get(name) for name in names]])

    found = keyed.do(everything)
    assert cookie["value"].encode() not in found
    assert keyed.ours.encode() not in found


def test_a_visit_opens_pages_only_and_a_key_no_page(keyed: Keyed) -> None:
    one, _ = signed_in(keyed, keyed.ours)
    assert one.get("/").status_code == 200
    assert one.get("/v1/jobs").status_code == 401
    assert client(keyed, **{"ndif-api-key": keyed.ours}).get("/").status_code == 303


def test_a_form_without_token_or_origin_is_refused(keyed: Keyed) -> None:
    one, token = signed_in(keyed, keyed.ours)
    _, foreign = signed_in(keyed, keyed.theirs)
    cases: list[tuple[dict[str, Any], dict[str, str], str]] = [
        ({}, FORM, "not from this page"),
        ({"form_token": "0" * 64}, FORM, "not from this page"),
        ({"form_token": foreign}, FORM, "not from this page"),
        ({"form_token": token}, {"sec-fetch-site": "cross-site"}, "not from this page"),
        ({"form_token": token}, {"sec-fetch-site": ""}, "not from this page"),
        ({"form_token": token}, {"origin": "http://evil.example"}, "may not use this server"),
        ({"form_token": token}, {"origin": "null"}, "may not use this server"),
    ]
    for data, headers, says in cases:
        answer = one.post("/page/sign-out", data=data, headers=headers)
        assert (answer.status_code, says in answer.text) == (403, True), (data, headers, answer.text)
    assert one.get("/").status_code == 200
    assert one.post("/page/sign-out", data={"form_token": token}).status_code == 303
    assert one.get("/").status_code == 303


def test_a_form_of_before_signing_in_is_none_of_the_visits(keyed: Keyed) -> None:
    one = client(keyed, **FORM)
    before = token_of(one.get(visitors.SIGN_IN).text)
    assert one.post(visitors.SIGN_IN, data={"key": keyed.ours, "form_token": before}).status_code == 303
    assert one.post("/page/sign-out", data={"form_token": before}).status_code == 403
    assert one.get("/").status_code == 200


def test_a_form_that_is_too_long_is_not_read(keyed: Keyed) -> None:
    one = client(keyed, **FORM)
    token = token_of(one.get(visitors.SIGN_IN).text)
    answer = one.post(visitors.SIGN_IN, data={"key": "x" * (5 << 20), "form_token": token})
    assert (answer.status_code, "methods.request_bytes" in answer.text) == (413, True)


def test_a_planted_id_signs_nobody_in(keyed: Keyed) -> None:
    """Signing in makes a new id; else whoever plants a cookie would be signed in with its owner."""
    one = client(keyed, **FORM)
    planted = visitors.fresh_id()
    one.cookies.set(visitors.COOKIE, planted)
    token = token_of(one.get(visitors.SIGN_IN).text)
    answer = one.post(visitors.SIGN_IN, data={"key": keyed.ours, "form_token": token})
    assert f"{visitors.COOKIE}=" in answer.headers["set-cookie"]
    assert planted not in answer.headers["set-cookie"]
    assert client(keyed, cookie=f"{visitors.COOKIE}={planted}").get("/").status_code == 303


@pytest.mark.parametrize("back", ["//evil.example/", "https://evil.example", "/\\evil.example", "/v1/jobs", "/page//x"])
def test_the_way_back_leads_to_pages_only(keyed: Keyed, back: str) -> None:
    one = client(keyed, **FORM)
    token = token_of(one.get(visitors.SIGN_IN, params={"back": back}).text)
    answer = one.post(visitors.SIGN_IN, data={"key": keyed.ours, "form_token": token, "back": back})
    assert answer.headers["location"] == "/"


def test_a_visit_ends_with_its_key_and_with_its_time(keyed: Keyed) -> None:
    async def mint(state: State) -> tuple[str, str]:
        key, secret = await state.tenants.mint("lab-c")
        return key.id, secret

    key_id, secret = keyed.do(mint)
    one, _ = signed_in(keyed, secret)
    keyed.do(lambda state: state.tenants.revoke(key_id))
    assert one.get("/").status_code == 303

    two, _ = signed_in(keyed, keyed.ours)

    async def pass_time(state: State) -> None:
        prefix = Keys(keyed.gateway.config.redis.prefix)
        async for name in state.redis.scan_iter(prefix.visit("*")):
            await state.redis.pexpire(name, 1)
            while await state.redis.exists(name):
                await asyncio.sleep(0.001)

    keyed.do(pass_time)
    assert two.get("/").status_code == 303
    assert two.get("/", headers={"hx-request": "true"}).headers["hx-redirect"] == visitors.SIGN_IN


def test_on_a_phone_and_in_the_dark(keyed: Keyed, look: Look) -> None:
    looking = look(keyed.gateway.url, size=PHONE, dark=True)
    looking.page.goto("/")
    looking.fits()
    looking.check()
    assert looking.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 20, 27)"


def test_pages_that_are_not_there_and_files(keyed: Keyed) -> None:
    one, _ = signed_in(keyed, keyed.ours)
    for path in ("/page/nothing", "/page/static/nothing.js", "/page/static/..%2Fframe.py", "/page/static/README.md"):
        answer = one.get(path)
        assert (answer.status_code, "<h1>" in answer.text) == (404, True), path
    html = one.get("/").text
    (address,) = re.findall(r'href="(/page/static/page\.css\?v=[0-9a-f]+)"', html)
    style = one.get(address)
    assert style.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert one.get(address, headers={"if-none-match": style.headers["etag"]}).status_code == 304
    policy = one.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_without_javascript_the_lines_are_a_page_of_their_own(keyed: Keyed) -> None:
    one, token = signed_in(keyed, keyed.ours)
    answer = one.post("/page/snippet", data={"form_token": token, "model": ""})
    assert "<h1>Models</h1>" in answer.text
    assert keyed.ours in answer.text
    assert answer.headers["cache-control"] == "no-store"
