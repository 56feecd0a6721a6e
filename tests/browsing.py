"""A real headless Chromium that looks at pages of ours: what it draws, what it complains of, what axe finds."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gateway_process
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, sync_playwright

from interlace_state.store import State, open_state

_T = TypeVar("_T")
Look = Callable[..., "Looking"]
#: A name, a window and, if it is not the usual one, how much of the page's height is shown.
Shown = Callable[..., None]
PATIENCE = 60_000  # milliseconds: the machine may be busy
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1200, "height": 800}
#: Cookies of visits, by URL and key.
_VISITS: dict[tuple[str, str], list[Any]] = {}
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def chromium() -> str | None:
    """The browser's program."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser without a screen; skips where there is none.

    While it is there this thread has a running event loop: only tests that are no coroutines can use it, and it must
    be closed before others run.
    """
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH: `apt-get install chromium` (Debian) brings one")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Looking:
    """A window of its own, and all that it has complained of."""

    def __init__(self, browser: Browser, url: str, *, size: dict[str, int] = DESK, dark: bool = False) -> None:
        self._url = url
        self.context = browser.new_context(
            base_url=url,
            viewport=size,  # type: ignore[arg-type]  # a typed dictionary
            color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith(url) else self.elsewhere.append(asked.url))

    def sign_in(self, key: str, back: str = "/") -> Page:
        """Open a page as the key's tenant: by the form the first time, then by the cookie that it gave."""
        if cookies := _VISITS.get((self._url, key)):
            self.context.add_cookies(cookies)
        self.page.goto(back)
        if self.page.get_by_label("API key").count():
            self.page.get_by_label("API key").fill(key)
            self.page.get_by_role("button", name="Sign in").click()
            self.page.wait_for_url(f"**{back}")
            _VISITS[self._url, key] = list(self.context.cookies())
        return self.page

    def until(self, holds: str) -> None:
        """Wait until JavaScript is true; Playwright's own way evals in the page, which our policy forbids."""
        end = time.monotonic() + PATIENCE / 1000
        while not self._is_so(holds):
            assert time.monotonic() < end, f"{holds} is not true of {self.page.url}"
            self.page.wait_for_timeout(50)

    def _is_so(self, holds: str) -> bool:
        try:
            return bool(self.page.evaluate(holds))
        except Error as error:
            if "context was destroyed" in error.message:  # another page is on its way
                return False
            raise

    def check(self) -> None:
        """Nothing in the console (what the policy forbids is told there), nothing from elsewhere, nothing for axe."""
        assert self.complaints == []
        assert self.elsewhere == []
        found = Axe().run(self.page, options={"runOnly": _RULES, "resultTypes": ["violations"]})
        told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found.response["violations"]]
        assert told == [], self.page.url

    def fits(self) -> None:
        """The page is not wider than its window."""
        wide, room = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= room, f"{self.page.url} is {wide} wide in a window of {room}"


def in_a_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """A coroutine's outcome, where Playwright has this thread's event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@dataclass(frozen=True)
class Keyed:
    """A gateway that asks for keys, with two tenants and an operator; `lab/tiny` is hosted and ready."""

    gateway: gateway_process.Gateway
    ours: str
    theirs: str
    admin: str

    def do(self, work: Callable[[State], Any]) -> Any:
        """Have a coroutine run with the gateway's state."""

        async def run() -> Any:
            async with open_state(self.gateway.config) as state:
                return await work(state)

        return in_a_thread(run())


@contextmanager
def keyed_gateway(folder: Path, redis_url: str, **sections: Any) -> Iterator[Keyed]:
    with gateway_process.running(folder, redis_url, **sections) as gateway:
        prefix = gateway.config.redis.prefix
        keys = [gateway_process.mint(redis_url, prefix, name) for name in ("lab-a", "lab-b")]
        keyed = Keyed(gateway, *keys, gateway_process.mint(redis_url, prefix, "ops", role="admin"))
        keyed.do(lambda state: gateway_process.publish(state, gateway.config))
        yield keyed
