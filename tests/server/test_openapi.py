"""The OpenAPI schema is true: schemathesis holds it against the live gateway."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
import schemathesis
import torch
import uploads
from gateway_process import COMMIT, HEADERS, KEY, Gateway, Worker, envelope, saved

from interlace.methods.shared.preview import preview
from interlace.protocol.event import Saved
from interlace_state.store import State


@pytest.mark.timeout(900)
async def test_the_schema_holds_for_whatever_is_sent(gateway: Gateway, state: State) -> None:
    """Every check but one. `positive_data_acceptance` cannot apply: OpenAPI has no way to say that a form's text

    field is an envelope of a hosted model, that its file is a zstd frame, or that a version is not below 0.8.0. And
    every operation but the stream of all models, which has no end.
    """
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1"),
        *("--exclude-path", "/v1/models/events"),
        *("--generation-database", "none", "--no-color", "--warnings", "off"),
        # No machine is too slow for it; some routes wait for 8 seconds by themselves.
        *("--request-timeout", "60", "--suppress-health-check", "too_slow"),
    ]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert not gateway.actions("uvicorn.error") or all(
        line["message"] == "Invalid HTTP request received." for line in gateway.actions("uvicorn.error")
    )


@pytest.fixture
async def facts(gateway: Gateway, worker: Worker) -> dict[str, Any]:
    """What the successful answers need: a job that ended, its link, a hub file, the environment, an artifact."""
    await worker.state.models.put_file(KEY, "config.json", b"{}")
    await worker.state.models.publish_environment({"python_version": "3.11.7", "packages": {"torch": "2.13.0"}})
    job_id = (await asyncio.to_thread(gateway.post)).json()["id"]
    lease = await worker.start()
    assert await worker.state.queue.record(lease, Saved(number=1, name="x", size=3, data=b"abc"))
    await worker.state.values.keep(job_id, 2, preview(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)))
    await worker.complete(lease, saved())
    url = (await asyncio.to_thread(gateway.get, f"/response/{job_id}")).json()["data"]
    sent, other = [await asyncio.to_thread(uploads.upload, gateway.url, name="one") for _ in range(2)]
    assert sent.status_code == 201, sent.text
    made = {"artifact_id": sent.json()["id"], "other_id": other.json()["id"]}
    return {"job_id": job_id, "token": url.rpartition("/")[2], **made}


SUCCESSES: list[tuple[str, str, dict[str, str]]] = [
    ("/response/{job_id}", "GET", {"job_id": "job_id"}),
    ("/results/{token}", "GET", {"token": "token"}),
    ("/status", "GET", {}),
    ("/env", "GET", {}),
    ("/whoami", "GET", {}),
    ("/ping", "GET", {}),
    ("/connected", "GET", {}),
    ("/connected", "HEAD", {}),
    ("/healthz", "GET", {}),
    ("/readyz", "GET", {}),
    ("/metrics", "GET", {}),
    ("/metrics/workers", "GET", {}),
    ("/hf/api/models/{repo_id}", "GET", {"repo_id": KEY.repo_id}),
    ("/hf/api/models/{repo_id}/revision/{revision}", "GET", {"repo_id": KEY.repo_id, "revision": COMMIT}),
    ("/hf/api/models/{repo_id}/tree/{rest}", "GET", {"repo_id": KEY.repo_id, "rest": "main"}),
    ("/hf/{repo_id}/resolve/{rest}", "GET", {"repo_id": KEY.repo_id, "rest": "main/config.json"}),
    ("/hf/{repo_id}/resolve/{rest}", "HEAD", {"repo_id": KEY.repo_id, "rest": "main/config.json"}),
    ("/v1/jobs", "GET", {}),
    ("/v1/jobs/{job_id}", "GET", {"job_id": "job_id"}),
    ("/v1/jobs/{job_id}/events", "GET", {"job_id": "job_id"}),
    ("/v1/jobs/{job_id}/result", "GET", {"job_id": "job_id"}),
    ("/v1/jobs/{job_id}/values/{number}", "GET", {"job_id": "job_id", "number": "1"}),
    ("/v1/jobs/{job_id}/pictures/{number}", "GET", {"job_id": "job_id", "number": "2"}),
    ("/v1/jobs/{job_id}", "DELETE", {"job_id": "job_id"}),
    ("/v1/artifacts", "GET", {}),
    ("/v1/artifacts/{artifact_id}", "GET", {"artifact_id": "artifact_id"}),
    ("/v1/artifacts/{artifact_id}/files/{name}", "GET", {"artifact_id": "artifact_id", "name": "adapter_config.json"}),
    ("/v1/lake", "GET", {}),
    ("/v1/lake/names/resolve", "GET", {}),
    ("/v1/lake/{entry_id}", "GET", {"entry_id": "artifact_id"}),
    ("/v1/lake/{entry_id}", "PATCH", {"entry_id": "artifact_id"}),
    ("/v1/lake/{entry_id}/lineage", "GET", {"entry_id": "artifact_id"}),
    ("/v1/lake/{entry_id}/versions", "GET", {"entry_id": "artifact_id"}),
    ("/v1/lake/{entry_id}/cite", "GET", {"entry_id": "artifact_id"}),
    ("/v1/lake/{entry_id}/compare", "GET", {"entry_id": "artifact_id"}),
    ("/v1/lake/{entry_id}/tags/{tag}", "PUT", {"entry_id": "other_id", "tag": "latest"}),
    ("/v1/lake/{entry_id}/tags/{tag}", "DELETE", {"entry_id": "other_id", "tag": "latest"}),
    ("/v1/lake/{entry_id}", "DELETE", {"entry_id": "other_id"}),
    ("/v1/artifacts/{artifact_id}", "DELETE", {"artifact_id": "artifact_id"}),
    ("/v1/methods", "GET", {}),
    ("/v1/methods/{name}", "GET", {"name": "lens.logit"}),
    ("/v1/jobs", "POST", {}),
    ("/v1/models", "GET", {}),
    ("/v1/models", "POST", {}),
    ("/v1/models/events", "GET", {}),
    ("/v1/models/{model}", "GET", {"model": "lab/new"}),
    ("/v1/models/{model}", "PATCH", {"model": "lab/new"}),
    ("/v1/models/{model}", "DELETE", {"model": "lab/new"}),
    ("/v1/models/{model}/pause", "POST", {"model": KEY.repo_id}),
    ("/v1/models/{model}/resume", "POST", {"model": KEY.slug}),
    ("/v1/replicas/{replica}/drain", "POST", {"replica": "r1"}),
    ("/v1/replicas/{replica}/drain", "DELETE", {"replica": "r1"}),
    ("/v1/tenants/{tenant}", "GET", {"tenant": "lab"}),
    ("/v1/tenants/{tenant}", "PUT", {"tenant": "lab"}),
]
QUERIES = {
    ("/v1/models/events", "GET"): {"follow": "false"},
    ("/v1/lake", "GET"): {"q": "one kind:peft"},
    ("/v1/lake/names/resolve", "GET"): {"ref": "lake://local/one"},
    ("/v1/lake/{entry_id}/compare", "GET"): {"other": "other_id"},
}
BODIES = {
    ("/v1/tenants/{tenant}", "PUT"): {"weight": 2, "limits": {"running_jobs": 3}},
    ("/v1/jobs", "POST"): {"method": "lens.logit@1", "model": KEY.repo_id, "params": {"prompts": ["One"]}},
    ("/v1/lake/{entry_id}", "PATCH"): {"declared": {"license": "mit"}, "visibility": "public"},
    ("/v1/models", "POST"): {"source": "lab/new", "autoscale": {"most": 2}},
    ("/v1/models/{model}", "PATCH"): {"replicas": 2},
}


async def test_every_success_is_as_declared(gateway: Gateway, facts: dict[str, Any]) -> None:
    schema = await asyncio.to_thread(schemathesis.openapi.from_url, f"{gateway.url}/openapi.json")
    declared = {(operation.ok().path, operation.ok().method.upper()) for operation in schema.get_all_operations()}
    assert declared == {(path, method) for path, method, _ in SUCCESSES} | {
        ("/request", "POST"),
        ("/v1/artifacts", "POST"),
    }
    for path, method, parameters in SUCCESSES:
        values = {name: facts.get(value, value) for name, value in parameters.items()}
        body = {"body": BODIES[path, method], "media_type": "application/json"} if (path, method) in BODIES else {}
        query = {name: facts.get(value, value) for name, value in QUERIES.get((path, method), {}).items()}
        case = schema[path][method].Case(path_parameters=values, query=query, **body)
        answer = await asyncio.to_thread(case.call, timeout=60)
        assert answer.status_code in (200, 202, 204), (path, answer.text)
        case.validate_response(answer)


async def test_the_envelope_is_in_the_schema(gateway: Gateway) -> None:
    document = (await asyncio.to_thread(gateway.get, "/openapi.json")).json()
    form = document["paths"]["/request"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = document["components"]["schemas"][form["$ref"].rpartition("/")[2]]["properties"]
    described = fields["data"]["contentSchema"]["properties"]
    assert described.keys() == envelope().keys()
    headers = {parameter["name"] for parameter in document["paths"]["/request"]["post"]["parameters"]}
    assert headers == {*HEADERS, "idempotency-key", "interlace-stream", "interlace-packing", "interlace-batching"}
