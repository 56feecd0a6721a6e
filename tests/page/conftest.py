"""Real gateways that a real browser looks at. `SCREENSHOTS=docs/page` in the environment has the pictures made anew."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from browsing import Keyed, Looking, Shown, keyed_gateway
from PIL import Image
from playwright.sync_api import Browser

_TALLEST = 1000  # of what a picture shows of a page, in its own dots


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Keyed]:
    with keyed_gateway(tmp_path_factory.mktemp("keyed"), redis_url, gateway={"drain_seconds": 0}) as keyed:
        yield keyed


@pytest.fixture
def look(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Looking]]:
    """Opens windows on a URL; they are closed at the test's end."""
    opened: list[Looking] = []

    def look(url: str, **how: Any) -> Looking:
        opened.append(Looking(browser, url, **how))
        return opened[-1]

    yield look
    for one in opened:
        one.context.close()


@pytest.fixture
def shown() -> Shown:
    """Writes a picture of a page for the documentation, where that is asked for."""
    folder = os.environ.get("SCREENSHOTS")

    def shown(name: str, looking: Looking, tallest: int = _TALLEST) -> None:
        if folder:
            wide, tall = looking.page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
            clip: Any = {"x": 0, "y": 0, "width": wide, "height": min(tall, tallest)}
            picture = Image.open(io.BytesIO(looking.page.screenshot(full_page=True, clip=clip)))
            few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)  # a fourth of the bytes
            few.save(Path(folder) / f"{name}.png", optimize=True)

    return shown
