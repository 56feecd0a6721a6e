"""The pages behind a proxy that ends TLS: cookies are `Secure`, forms are ours, and a job's events come through."""

from pathlib import Path

import httpx
import tls_proxy
from browsing import Keyed, Look
from gateway_process import KEY, Worker

from interlace.protocol.event import Progress
from interlace_server.doors import visitors


def test_over_https(keyed: Keyed, look: Look, tmp_path: Path) -> None:
    body = {"method": "lens.logit", "model": KEY.repo_id, "params": {"prompts": ["The Eiffel Tower"]}}
    with tls_proxy.before(keyed.gateway.url, tmp_path) as url:
        answer = httpx.post(f"{url}/v1/jobs", json=body, headers={"ndif-api-key": keyed.ours}, timeout=60, verify=False)
        job_id = answer.json()["id"]
        looking = look(url, ignore_https_errors=True)
        page = looking.sign_in(keyed.ours, f"/page/jobs/{job_id}")
        kept = {one["name"]: one for one in looking.context.cookies()}
        for name in (visitors.COOKIE, visitors.FORM_COOKIE):
            assert (kept[name]["secure"], kept[name]["httpOnly"]) == (True, True), name
        lease = keyed.do(lambda state: Worker(state).start())
        keyed.do(lambda state: state.queue.record(lease, Progress(step=3, of=10, metrics={"loss": 0.25})))
        page.get_by_role("img", name="Curve of loss over step: 0.25 at step 3").wait_for()  # which the stream has told
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Cancel").click()  # a form, with a token and an origin of https
        page.get_by_text("The job was told to end.").wait_for()
        keyed.do(lambda state: Worker(state).end(lease, "cancelled"))
        looking.check()
    plain = look(keyed.gateway.url)
    plain.sign_in(keyed.ours)
    assert not any(one["secure"] for one in plain.context.cookies())
