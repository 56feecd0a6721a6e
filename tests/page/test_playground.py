"""The Playground: real jobs on real small models, started by clicks; what is drawn is what the job's result says."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import tiny_diffusion
import torch
from browsing import PHONE, Look, Looking, Shown
from gateway_keys import key_for
from nnsight import CONFIG
from nnsight.modeling import huggingface
from nnsight.modeling.diffusion import DiffusionModel
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from playwright.sync_api import Page

import interlace

FACTS = "local/facts-gpt-mini"
SOURCES = {
    FACTS: Path(__file__).parent.parent / "assets" / "facts-gpt-mini",
    tiny_diffusion.SHAPES: tiny_diffusion.ASSET,
}
#: A place in a page with a text -> the names that it makes.
Copied = Callable[[Page, str], dict[str, Any]]
FRANCE, CHINA = "France is located on the continent of", "China is located on the continent of"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[running.Running]:
    models = [{"source": str(folder), "repo_id": name, "threads": 1} for name, folder in SOURCES.items()]
    with running.interlace(home, {"runtime": "process", "models": models}, seconds=400) as server:
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
        field = page.locator(f"#field-{label}")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
    page.get_by_role("button", name="Run").click()
    page.wait_for_url(re.compile(rf"/page/playground/{tool}/[0-9a-f]{{32}}$"))
    page.locator("#client-code").wait_for()
    page.locator("#played [role=status] strong").wait_for()
    return page.url.rpartition("/")[2]


def cells(page: Page, number: int = 0) -> list[list[str]]:
    """The rows of a figure's table, as they are shown."""
    table = page.locator("#played details").nth(number)
    table.locator("summary").click()
    found = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    table.locator("summary").click()
    return found


def hints(page: Page, number: int = 0) -> list[str]:
    """What each field of a heat map says of itself."""
    return page.locator("#played svg").nth(number).locator("g > title").all_text_contents()


@pytest.fixture
def copied(
    server: running.Running, key: str, client: interlace.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Copied:
    """Runs a text of a page as it is shown; its names, and what it printed as `said`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NDIF_API_KEY", key)
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    for name, folder in SOURCES.items():
        monkeypatch.setitem(huggingface._ID_CACHE, str(folder), name)

    def copied(page: Page, place: str) -> dict[str, Any]:
        text = page.locator(place).inner_text()
        file = tmp_path / "copied.py"
        # Nothing here reaches the hub, or the gateway's, by another process's settings: the skeleton is the asset's.
        for name, folder in SOURCES.items():
            text = re.sub(rf"Model\(\"{name}\"", f"Model({str(folder)!r}", text)
        file.write_text(text)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            names = runpy.run_path(str(file))
        return names | {"said": said.getvalue()}

    return copied


@pytest.fixture(scope="module")
def style(client: interlace.Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA of the pipeline with random weights, kept on the server: what it is called there."""
    pipeline = DiffusionModel(str(tiny_diffusion.ASSET), dispatch=True).pipeline
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    folder = tmp_path_factory.mktemp("style")
    layers = get_peft_model_state_dict(pipeline.unet)
    pipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict())
    client.artifacts.upload(folder, kind="diffusers-lora", model=tiny_diffusion.SHAPES, name="my style")
    return "my style (lab-a)"


def test_the_logit_lens(
    server: running.Running,
    key: str,
    client: interlace.Client,
    look: Look,
    shown: Shown,
    tmp_path: Path,
    copied: Copied,
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
    (corner,) = [hint for hint in drawn if hint.startswith("5,  of: ")]
    assert float(corner.split()[2]) == pytest.approx(exp(best[5, 8][5]), rel=5e-3)
    assert next(row[:3] for row in cells(page))[1:3] == ["F", "1"]
    looking.check()
    shown("playground-lens", looking, 2400)
    assert copied(page, "#client-code")["result"] == result
    assert (tmp_path / "lens.png").stat().st_size > 5000
    # As somebody would who copies it: the clipboard's text, in a Python of its own.
    page.get_by_role("button", name="Copy").last.click()
    page.get_by_role("button", name="Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NDIF_"))}
    environ |= {"NDIF_API_KEY": key, "HF_HOME": str(tmp_path)}
    file = tmp_path / "theirs.py"
    file.write_text(text)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=240, env=environ)
    assert done.returncode == 0, done.stderr
    for layer, line in enumerate(done.stdout.splitlines()[-6:]):
        words, chances = literal_eval(line.partition(" ")[2].replace("] [", "], ["))
        assert words == [best[layer, at][4] for at in range(9)]
        assert chances == pytest.approx([exp(best[layer, at][5]) for at in range(9)], abs=1e-4)


def test_a_causal_trace(
    server: running.Running, key: str, client: interlace.Client, look: Look, shown: Shown, copied: Copied
) -> None:
    looking = look(server.url, dark=True)
    looking.sign_in(key, "/page/playground/trace")
    job = played(looking, "trace", prompt=FRANCE, subject="France", samples="2")
    page = looking.page
    result = client.follow_method(job).result()
    effects = client.artifacts.open(result.artifacts[0]).tensors["0.resid_post"]
    found = {(row[0], row[1]): float(row[2]) for row in cells(page)}
    tokens = ["F", "ran", "ce", " is", " located", " on", " the", " continent", " of"]
    assert len(found) == len(hints(page)) == 6 * 9
    for (layer, token), value in found.items():
        at = tokens.index(token if token in tokens else f" {token}")
        assert value == pytest.approx(float(effects[at, int(layer)]), rel=1e-3, abs=1e-4)
    clean, drowned = result.table("prompts").rows[0][3:5]
    assert f"{clean:.2f}, and {drowned:.2f}" in page.locator("#played [role=status]").inner_text()
    looking.check()
    shown("playground-trace", looking, 2400)
    own = copied(page, "#nnsight-code")
    torch.testing.assert_close(own["back"].T, effects, atol=1e-3, rtol=1e-3)


def test_a_patch_between_two_prompts(
    server: running.Running, key: str, client: interlace.Client, look: Look, shown: Shown, copied: Copied
) -> None:
    looking = look(server.url)
    looking.sign_in(key, "/page/playground/patch")
    job = played(looking, "patch", a=FRANCE, b=CHINA)
    page = looking.page
    result = client.follow_method(job).result()
    for number, into in enumerate("ab"):
        rows = [row for row in result.table("effects").rows if row[0] == into]
        assert [float(row[2]) for row in cells(page, number)] == pytest.approx(
            [float(row[4]) for row in rows], rel=1e-3, abs=1e-4
        )
    assert "A is answered with “Europe”, B with “Asia”" in page.locator("#played [role=status]").inner_text()
    assert "has nothing beside it" in page.locator("#played").inner_text()
    looking.check()
    shown("playground-patch", looking, 2400)
    own = copied(page, "#nnsight-code")
    expected = torch.tensor([row[4] for row in result.table("effects").rows]).view(2, 6, 9)
    torch.testing.assert_close(own["effects"], expected, atol=1e-4, rtol=1e-4)


def test_steering(
    server: running.Running, key: str, client: interlace.Client, look: Look, shown: Shown, copied: Copied
) -> None:
    looking = look(server.url)
    looking.sign_in(key, "/page/playground/steer")
    fields = {"prompt": FRANCE, "more": CHINA, "less": FRANCE, "wanted": "Asia", "other": "Europe"}
    assert looking.page.locator("#field-layer").input_value() == ""
    job = played(looking, "steer", **fields, scales="1, 2", write="2", neutral="Two plus two is four.")
    page = looking.page
    assert page.locator("#field-layer").input_value() == "3"  # the middle one of six
    result = client.follow_method(job).result()
    effects = {row[0]: row[2] for row in result.table("scales").rows if row[1] == "direction"}
    found = [row for row in cells(page) if row[1] == "direction"]
    assert [float(row[2]) for row in found] == pytest.approx([effects[1.0], effects[2.0]], rel=1e-3)
    wrote = {row[0]: row[2] for row in result.table("texts").rows}
    assert [one.strip() for one in page.locator(".continuation").all_inner_texts()] == [
        wrote[0.0].strip(),
        wrote[1.0].strip(),
        wrote[2.0].strip(),
    ]
    assert wrote[0.0].startswith(" Europe")
    assert wrote[2.0].startswith(" Asia")
    looking.check()
    shown("playground-steer", looking, 2400)
    own = copied(page, "#nnsight-code")
    for scale in (1.0, 2.0):
        assert own["margins"][scale] - own["margins"][0.0] == pytest.approx(effects[scale], abs=1e-3)
        assert f"{scale} {wrote[scale]!r}" in own["said"]


def test_a_denoising_strip_and_a_style(
    server: running.Running, key: str, client: interlace.Client, look: Look, shown: Shown, copied: Copied, style: str
) -> None:
    looking = look(server.url)
    looking.sign_in(key, "/page/playground/denoise")
    page = looking.page
    job = played(looking, "denoise", prompt="a large red triangle", steps="6")
    assert page.locator(".strip figcaption").all_inner_texts() == ["noise", *(f"after {step}" for step in range(1, 7))]
    own = copied(page, "#nnsight-code")["pictures"]
    result = client.follow_method(job).result()
    for number, picture in enumerate(result.pictures):
        address = page.locator(".strip img").nth(number).get_attribute("src") or ""
        answer = page.request.get(address)
        assert answer.headers["content-type"] == "image/png"
        assert answer.body() == picture.data
        pixels = np.asarray(Image.open(io.BytesIO(picture.data)), dtype=float) / 255
        assert np.abs(pixels - own[number].permute(1, 2, 0).numpy()).max() < 0.02 + (number == 0)
    assert page.locator(".strip img").last.evaluate("image => image.naturalWidth") == 32
    looking.check()
    job = played(looking, "denoise", prompt="a large red triangle", steps="3", adapter=style, weights="0, 0.5, 1")
    slider = page.get_by_label("Strength of the style")
    page.locator('[aria-valuetext="style at 1"]').wait_for()  # once its script has seen it
    assert page.locator(".slides li:visible").count() == 1
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "style at 0.5"
    assert page.locator(".slides li:visible img").get_attribute("alt") == "How strong the style is: style at 0.5"
    looking.check()
    shown("playground-denoise", looking, 2400)
    assert [one.weight for one in copied(page, "#client-code")["result"].pictures if one.step == 3] == [0.0, 0.5, 1.0]


def test_on_a_phone_by_keyboard_and_what_is_wrong_is_said(
    server: running.Running, key: str, look: Look, shown: Shown
) -> None:
    looking = look(server.url, size=PHONE)
    page = looking.sign_in(key, "/page/playground/lens")
    for tool in ("lens", "trace", "patch", "steer", "denoise"):
        page.goto(f"/page/playground/{tool}")
        looking.fits()
        looking.check()
    page.goto("/page/playground/trace")
    page.locator("#field-subject").fill("Spain")
    page.locator("#field-samples").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("alert").filter(has_text="Spain").inner_text() == (
        "The subject 'Spain' does not stand in the prompt: copy it from there."
    )
    assert page.locator("#field-subject").input_value() == "Spain"
    looking.complaints.clear()  # Chromium tells of a 422
    played(looking, "lens", prompt="<b>France</b> is")
    assert page.locator("#played b").count() == 0
    looking.fits()
    looking.check()
    shown("playground-phone", looking, 2400)


def test_a_job_that_fails_one_that_is_cancelled_and_one_of_another_tenant(
    server: running.Running, key: str, look: Look, style: str
) -> None:
    looking = look(server.url)
    page = looking.sign_in(key, "/page/playground/patch")
    for name in "ab":
        page.locator(f"#field-{name}").fill(FRANCE)
    page.get_by_role("button", name="Run").click()
    page.locator("#played .problem").wait_for()
    assert "the same tokens" in page.locator("#played .problem").inner_text()
    address = page.url
    looking.check()
    page.goto("/page/playground/denoise")
    page.locator("#field-steps").fill("200")  # at each of five strengths: they are not over before they were looked at
    page.locator("#field-adapter").select_option(label=style)
    page.get_by_role("button", name="Run").click()
    page.get_by_role("status").filter(has_text=re.compile(r"Step \d+ of 1,?000")).wait_for()
    looking.check()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text(re.compile(r"Cancelled after \d+ of 1000 steps")).wait_for()
    assert page.locator(".strip img").count() >= 1
    other = look(server.url)
    other.sign_in(key_for(server, "lab-b"), "/page/playground")
    answer = other.page.goto(address)
    assert answer is not None
    assert answer.status == 404
    assert other.page.goto(address.replace("/patch/", "/lens/")).status == 404  # type: ignore[union-attr]
    assert page.goto(address.replace("/patch/", "/lens/")).status == 404  # type: ignore[union-attr]
