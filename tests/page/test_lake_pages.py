"""The Lake's pages on a real gateway: what is searched, drawn, compared, cited and changed is what the lake says."""

import re
from typing import Any

import gateway_process
import pytest
import safetensors.torch
import torch
from browsing import PHONE, Keyed, Look, Shown

import interlace
import interlace_state.store
from interlace.protocol.artifact import Artifact, Base, Lineage
from interlace.protocol.lake import Measured
from interlace_state.lake.records import model_id
from interlace_state.settings.limits import Admission

KEY, COMMIT = gateway_process.KEY, gateway_process.COMMIT
MODEL = model_id(KEY.canonical, COMMIT)
BASE = Base(repo_id=KEY.repo_id, key=KEY.canonical, commit=COMMIT)


async def _add(
    state: interlace_state.store.State,
    name: str,
    *parents: Artifact,
    tenant: str = "lab-a",
    loss: float,
    losses: int = 1,
    **params: Any,
) -> Artifact:
    weights = {
        "base_model.model.a.lora_A.weight": torch.full((2, 8), loss),
        "base_model.model.a.lora_B.weight": torch.ones(8, 2),
    }
    files = {
        "adapter_config.json": b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a"]}',
        "adapter_model.safetensors": safetensors.torch.save(weights),
    }
    staged = {}
    for file, data in files.items():
        staged[file] = state.artifacts.stage()
        staged[file].write_bytes(data)
    lineage = Lineage(
        job="0" * 31 + name[-1].lower().encode().hex()[-1],
        method="elm.erase@1",
        model=KEY.canonical,
        commit=COMMIT,
        params_sha256="0" * 64,
        params={"steps": 3} | params,
        seed=4,
        parents=tuple(one.ref for one in parents),
        metrics=(Measured(name="loss", value=loss), *(Measured(name=f"loss {n}", value=n) for n in range(1, losses))),
    )
    return await state.artifacts.add(tenant, "peft", staged, Admission(), name=name, base=BASE, lineage=lineage)


@pytest.fixture(scope="module")
def lake(keyed: Keyed) -> dict[str, Artifact]:
    """A small tree: two of one parent, one of them of two parents; and one of another tenant's."""

    async def made(state: Any) -> dict[str, Artifact]:
        first = await _add(state, "no wizards", loss=0.5)
        second = await _add(state, "no dragons", first, loss=0.25)
        both = await _add(state, "no <b>magic</b>", first, second, loss=0.125)
        theirs = await _add(state, "secret", tenant="lab-b", loss=1.0)
        return {"first": first, "second": second, "both": both, "theirs": theirs}

    found: dict[str, Artifact] = keyed.do(made)
    return found


def test_a_search_finds_what_the_lake_finds(keyed: Keyed, lake: dict[str, Artifact], look: Look, shown: Shown) -> None:
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, "/page/lake")
    with interlace.connect(keyed.gateway.url, keyed.ours) as client:
        expected = client.lake.search("")
        words = client.lake.search("dragons kind:peft metric:loss<0.3")
    rows = page.locator("tbody tr")
    assert rows.locator("a").all_inner_texts() == [one.name for one in expected.entries]
    assert page.get_by_role("heading", name=f"{expected.total} found").is_visible()
    assert "secret" not in page.content()
    assert page.locator("tbody b").count() == 0
    looking.check()
    shown("lake", looking)
    page.get_by_role("link", name="kind: peft (3)").click()
    page.wait_for_url("**kind**")
    assert page.get_by_label("Search").input_value() == "kind:peft"
    assert rows.count() == 3
    assert page.locator(".filters [aria-current]").inner_text() == "kind: peft (3)"
    page.get_by_label("Search").fill("dragons kind:peft metric:loss<0.3")
    page.keyboard.press("Enter")
    page.wait_for_url("**metric**")
    assert rows.locator("a").all_inner_texts() == [one.name for one in words.entries] == ["no dragons"]
    page.get_by_label("Search").fill("colour:red")
    page.keyboard.press("Enter")
    page.get_by_text("is no filter; there are").wait_for()
    looking.complaints.clear()  # Chromium tells of a 422


def test_a_card_its_lineage_and_its_citation(keyed: Keyed, lake: dict[str, Artifact], look: Look, shown: Shown) -> None:
    both = lake["both"]
    looking = look(keyed.gateway.url, dark=True)
    page = looking.sign_in(keyed.ours, f"/page/lake/{both.id}")
    with interlace.connect(keyed.gateway.url, keyed.ours) as client:
        card, graph = client.lake.card(both.id), client.lake.lineage(both.id)
        citation = client.lake.cite(both.id)
    assert page.get_by_role("heading", level=1).inner_text() == "no <b>magic</b>"
    said = page.locator(".facts tbody tr")
    told = sorted(card.statements, key=lambda one: one.source == "measured")  # these stand below the others
    assert [row.split("\t")[0] for row in said.all_inner_texts()] == [one.field for one in told]
    measured = said.get_by_role("link", name=f"job {card.entry.job[:8]}").last
    assert measured.get_attribute("href") == f"/page/jobs/{card.entry.job}"
    loss = next(one for one in said.all_inner_texts() if one.startswith("metric:loss") or "0.125" in one)
    assert "measured" in loss
    assert page.locator("svg .node").count() == len(graph.nodes) == 4
    assert page.locator("svg .edge").count() == len(graph.edges) == 6
    assert page.locator("#bibtex").inner_text().strip() == citation.bibtex.strip()
    boxes = {
        one.id: page.locator(f'svg a[href="/page/lake/{one.id}"] rect').bounding_box()
        for one in (*lake.values(),)
        if one.id != lake["theirs"].id
    }
    assert boxes[lake["first"].id]["x"] < boxes[lake["second"].id]["x"] < boxes[both.id]["x"]  # type: ignore[index]
    looking.check()
    shown("lake-card", looking, 2400)
    page.get_by_role("button", name="Copy the artifact").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"artifact:{both.id}"
    link = page.locator(f'svg a[href="/page/lake/{lake["second"].id}"]')
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/page/lake/{lake['second'].id}")
    assert page.get_by_role("heading", level=1).inner_text() == "no dragons"


def test_a_card_with_much_to_say_on_a_phone(keyed: Keyed, look: Look) -> None:
    """Long values and many numbers of one job are folded; who wants them opens them, without JavaScript."""

    async def made(state: Any) -> Artifact:
        return await _add(state, "long", tenant="lab-b", loss=0.5, losses=60, texts=["a text of many"] * 300)

    long: Artifact = keyed.do(made)
    looking = look(keyed.gateway.url, size=PHONE, java_script_enabled=False)
    page = looking.sign_in(keyed.theirs, f"/page/lake/{long.id}")
    looking.fits()
    high = page.locator("html").bounding_box()["height"]  # type: ignore[index]
    assert high < 8 * PHONE["height"], f"{high} pixels high"
    assert not page.get_by_text("loss 59").is_visible()
    page.get_by_text("60 numbers that job").click()
    assert page.get_by_role("cell", name="0.5", exact=True).first.is_visible()
    assert page.get_by_text("loss 59").is_visible()
    all_of_it = page.get_by_role("region", name="All of it")
    assert not all_of_it.is_visible()
    page.get_by_text('{"steps": 3, "texts": ["a text of many"').first.click()
    assert all_of_it.inner_text().count("a text of many") == 300


def test_two_side_by_side(keyed: Keyed, lake: dict[str, Artifact], look: Look, shown: Shown) -> None:
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours, "/page/lake?q=kind:peft")
    page.get_by_label(re.compile("Compare no wizards")).check()
    page.get_by_label(re.compile("Compare another with no dragons")).check()
    page.get_by_role("button", name="Compare a with b").click()
    page.wait_for_url("**/compare**")
    with interlace.connect(keyed.gateway.url, keyed.ours) as client:
        found = client.lake.compare(lake["first"].id, lake["second"].id)
    alone = [one.field for one in found.differences if one.a is None or one.b is None]
    for name, fields in (
        ("What differs", [one.field for one in found.differences if one.field not in alone]),
        ("What only one has", alone),
    ):
        rows = page.get_by_role("region", name=name, include_hidden=True).locator("tbody th")
        assert rows.all_text_contents() == fields
    assert page.get_by_role("link", name=found.ancestors[0].label).count() >= 1
    looking.check()
    shown("lake-compare", looking)
    page.get_by_role("button", name="Measure it by a job").click()
    page.wait_for_url("**/page/jobs/*")
    with interlace.connect(keyed.gateway.url, keyed.ours) as client:
        job = client.cancel(page.url.rpartition("/")[2])
    assert (job.method or "").startswith("lake.compare@")


def test_an_owner_changes_tags_and_deletes(keyed: Keyed, lake: dict[str, Artifact], look: Look) -> None:
    looking = look(keyed.gateway.url, size=PHONE)
    page = looking.sign_in(keyed.ours, f"/page/lake/{lake['first'].id}")
    looking.fits()
    page.get_by_label("Who sees it").select_option("public")
    page.get_by_label("Licence").fill("cc-by-4.0")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("status").filter(has_text="It is changed.").wait_for()
    page.get_by_label("Have a tag point here").fill("latest")
    page.get_by_role("button", name="Tag", exact=True).click()
    page.get_by_role("status").filter(has_text="The tag points here now.").wait_for()
    looking.check()
    with interlace.connect(keyed.gateway.url, keyed.theirs) as theirs:
        entry = theirs.lake.resolve("lake://lab-a/no-wizards:latest")
        assert (entry.id, entry.visibility) == (lake["first"].id, "public")
        assert [one.id for one in theirs.lake.search("declared:license=cc-by-4.0").entries] == [entry.id]
    other = look(keyed.gateway.url)
    others = other.sign_in(keyed.theirs, f"/page/lake/{lake['first'].id}")
    assert others.get_by_role("heading", name="Change it").count() == 0
    assert others.goto(f"/page/lake/{lake['second'].id}").status == 404  # type: ignore[union-attr]
    page.get_by_role("button", name="Take :latest off").click()
    page.get_by_role("status").filter(has_text="The tag is taken off.").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/page/lake?done=lake_deleted")
    assert page.get_by_role("link", name="no wizards").count() == 0
    page.goto(f"/page/lake/{lake['second'].id}")
    assert page.locator("svg .node.gone text").first.text_content() == "(deleted)"
    looking.fits()
    looking.check()
