"""Admin: models, tenants, keys and the audit log; for operators alone."""

import httpx
from browsing import Keyed, Look, Shown
from gateway_process import KEY

from interlace.protocol.hosting import Origin
from interlace_state.desired import Desired
from interlace_state.settings.models import ModelConfig
from interlace_state.store import State


async def record(state: State) -> None:
    """Say that `lab/tiny` was deployed, as the placement loop would have it."""
    model = ModelConfig(source=KEY.repo_id)
    desired = Desired(key=KEY, model=model, origin=Origin.DEPLOYED, asked_at=1.0)
    await state.desired.change(KEY, lambda former: former or desired)


def view(keyed: Keyed, name: str = KEY.repo_id) -> dict[str, object]:
    answer = httpx.get(f"{keyed.gateway.url}/v1/models/{name}", headers={"ndif-api-key": keyed.admin}, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def test_an_operator_looks_after_models(keyed: Keyed, look: Look, shown: Shown) -> None:
    keyed.do(record)
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.admin, "/page/admin")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"Pause {KEY.repo_id}").click()
    page.get_by_text("The model starts no more jobs").wait_for()
    assert view(keyed)["paused"] is True
    page.get_by_role("button", name=f"Resume {KEY.repo_id}").click()
    page.get_by_text("The model starts jobs again").wait_for()
    assert view(keyed)["paused"] is False

    page.get_by_role("link", name=KEY.repo_id).click()
    page.get_by_label("at most").fill("3")
    page.get_by_label("Leaves when idle for").fill("2.5")
    page.get_by_label("Pinned").check()
    looking.check()
    page.get_by_role("button", name="Change").click()
    page.get_by_text("hosted so from now on").wait_for()
    now = view(keyed)
    assert (now["least"], now["most"], now["idle_seconds"], now["pin"]) == (1, 3, 150.0, True)

    page.get_by_label("Hub id").fill("lab/new")
    page.get_by_label("Weights").select_option("bfloat16")
    page.get_by_role("button", name="Deploy").click()
    page.get_by_text("The model was asked for").wait_for()
    page.get_by_role("link", name="lab/new").wait_for()
    assert view(keyed, "lab/new")["phase"] in ("queued", "evicted")
    looking.check()

    page.get_by_role("button", name=f"Evict {KEY.repo_id}").click()
    page.get_by_text("The model leaves the memory").wait_for()
    desired = keyed.do(lambda state: state.desired.find(KEY))
    assert desired.resting
    page.get_by_role("link", name="lab/new").click()
    page.get_by_role("button", name="Forget the model").click()
    page.get_by_text("hosted no longer").wait_for()
    assert keyed.do(lambda state: state.desired.find(KEY.model_copy(update={"repo_id": "lab/new"}))) is None


def test_a_wrong_form_is_refused_in_words(keyed: Keyed, look: Look) -> None:
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.admin, "/page/admin")
    page.get_by_label("Hub id").fill("a/b/c/d")
    page.get_by_role("button", name="Deploy").click()
    page.get_by_text("no hub id").wait_for()
    assert page.get_by_role("heading", level=1).inner_text() == "That did not work"


def test_limits_weights_and_keys_of_a_tenant(keyed: Keyed, look: Look, shown: Shown) -> None:
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.admin, "/page/admin/tenants")
    page.on("dialog", lambda dialog: dialog.accept())
    looking.check()
    page.get_by_role("link", name="lab-b").click()
    page.get_by_label("weight").fill("2.5")
    page.get_by_label("running_jobs").fill("7")
    page.get_by_role("button", name="Change").click()
    page.get_by_text("these from now on").wait_for()
    looking.check()
    told = httpx.get(f"{keyed.gateway.url}/v1/tenants/lab-b", headers={"ndif-api-key": keyed.admin}, timeout=60).json()
    assert told["weight"] == 2.5
    assert {name: value for name, value in told["limits"].items() if value is not None} == {"running_jobs": 7}
    theirs = look(keyed.gateway.url).sign_in(keyed.theirs, "/page/keys")
    row = theirs.get_by_role("region", name="Limits").locator("tr", has_text="running_jobs").locator("td")
    assert row.get_attribute("data-limit") == "7"
    page.get_by_label("running_jobs").fill("")
    page.get_by_label("wall_seconds").fill("-1")
    page.evaluate("document.querySelector('#wall_seconds').form.noValidate = true")
    page.get_by_role("button", name="Change").click()
    page.get_by_text("wall_seconds").wait_for()
    assert page.get_by_role("heading", level=1).inner_text() == "That did not work"

    page.goto("/page/admin/tenants")
    page.get_by_role("textbox", name="Tenant").fill("lab-new")
    page.get_by_role("button", name="Make it").click()
    secret = page.locator("#secret").inner_text()
    page.get_by_role("link", name="Back").click()
    page.get_by_role("heading", name="lab-new").wait_for()
    whoami = httpx.get(f"{keyed.gateway.url}/whoami", headers={"ndif-api-key": secret}, timeout=60)
    assert whoami.json()["email"] == "lab-new"
    page.get_by_role("button", name="Revoke").click()
    page.get_by_text("nobody gets in with it").wait_for()
    whoami = httpx.get(f"{keyed.gateway.url}/whoami", headers={"ndif-api-key": secret}, timeout=60)
    assert whoami.status_code == 401

    page.goto("/page/admin/audit?text=lab-new")
    told_of = page.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert told_of[:2] == ["key revoked", "key made"]
    assert secret not in page.content()
    looking.complaints.clear()  # Chromium tells of the 422
    looking.check()


def test_the_last_admin_stays(keyed: Keyed, look: Look) -> None:
    page = look(keyed.gateway.url).sign_in(keyed.admin, "/page/admin/tenants/ops")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Revoke").click()
    page.get_by_text("the last key of an admin").wait_for()
    page.goto("/page/admin")
    assert page.get_by_role("heading", name="Admin").is_visible()


def test_admin_is_for_operators(keyed: Keyed, look: Look) -> None:
    looking = look(keyed.gateway.url)
    page = looking.sign_in(keyed.ours)
    token = page.locator("input[name=form_token]").first.get_attribute("value")
    form = {"form_token": token or "", "model": KEY.repo_id, "source": "lab/x", "tenant": "lab-a", "key": "x"}
    origin = {"origin": keyed.gateway.url}
    request = looking.context.request
    reads = ("", "/model?name=lab/tiny", "/tenants", "/tenants/lab-b", "/audit")
    assert {request.get(f"/page/admin{path}").status for path in reads} == {403}
    writes = ("/deploy", "/evict", "/pause", "/scale", "/tenants", "/tenants/lab-a", "/tenants/keys/revoke")
    assert {request.post(f"/page/admin{path}", form=form, headers=origin).status for path in writes} == {403}
    assert request.post("/page/sign-out", form=form, headers=origin).status == 200
