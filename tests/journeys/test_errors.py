"""Promise: whatever goes wrong, the stock client raises an error that says what, where, and what would be right."""

import json
import pickle
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nnsight
import probes
import pytest
import running
import tiny
import torch
import zstandard
from nnsight import CONFIG
from nnsight.intervention.backends import remote as stock
from nnsight.intervention.backends.remote import RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
HEADERS = {"nnsight-version": "0.8.1", "python-version": sys.version}


def line_of(text: str, file: str = __file__) -> int:
    """The number of the one line of a file that ends with a text."""
    lines = Path(file).read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(text) and "line_of" not in line]
    return number


def refused(trace: Callable[[], None]) -> str:
    """What the stock client raises; none of our frames and none of nnsight's are in it."""
    with pytest.raises(RemoteError) as caught:
        trace()
    text = str(caught.value)
    assert "interlace_workers" not in text
    assert "site-packages/nnsight" not in text
    return text


def test_an_exception_in_the_block(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            hidden = client.transformer.h[0].output
            hidden.frobnicate()

    text = refused(trace)
    assert f'File "{__file__}", line {line_of("hidden.frobnicate()")}, in trace' in text
    assert "hidden.frobnicate()" in text
    assert text.splitlines()[-1].startswith("AttributeError: 'Tensor' object has no attribute 'frobnicate'")


def test_an_exception_in_a_function_that_travelled(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            probes.demand(client.transformer.h[0].output)

    text = refused(trace)
    line = line_of('raise Wrong(f"{tuple(value.shape)} is not what I want")', probes.__file__)
    assert f"{probes.__file__}" in text
    assert f"line {line}, in demand" in text
    assert "raise Wrong(" in text
    assert "is not what I want" in text.splitlines()[-1]
    assert "probes.demand(client.transformer.h[0].output)" in text


def test_an_exception_with_a_cause(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            number = "seven"
            try:
                int(number)
            except ValueError as error:
                raise RuntimeError("could not read the number: ünïcode ✗") from error

    text = refused(trace)
    assert "invalid literal for int() with base 10: 'seven'" in text
    assert text.splitlines()[-1] == "RuntimeError: could not read the number: ünïcode ✗"


def test_a_module_that_does_not_exist(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.nowhere.output.save()

    text = refused(trace)
    assert "has attribute 'nowhere'" in text
    assert "client.transformer.nowhere.output.save()" in text
    assert "`model.transformer` has the modules wte, wpe, drop, h, ln_f." in text


def test_a_module_that_is_misspelt(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[0].atn.output.save()

    assert "Did you mean `attn`? `model.transformer.h.0` has the modules ln_1, attn, ln_2, mlp." in refused(trace)


def test_a_layer_that_does_not_exist(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[99].output.save()

    text = refused(trace)
    assert "has attribute '99'" in text
    assert "`model.transformer.h` has the modules 0 to " in text


def test_out_of_order_access(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[2].output.save()
            client.transformer.h[1].output.save()

    text = refused(trace)
    assert "OutOfOrderError" in text
    assert "model.transformer.h.1.output" in text
    assert f"line {line_of('client.transformer.h[1].output.save()')}" in text
    assert text.endswith("or into a `with tracer.invoke(...):` of its own.")


def test_a_tensor_that_is_taken_for_a_tuple(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[2].output[0][:, -1, :].save()

    text = refused(trace)
    assert "too many indices for tensor" in text
    assert "`.output[0]` the first prompt's part of it" in text


def test_a_module_that_is_never_reached(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.generator.streamer.output.save()

    assert "model.generator.streamer.output" in refused(trace)


def test_a_shape_mismatch_in_the_block(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[0].output @ torch.ones(65)

    text = refused(trace)
    assert "client.transformer.h[0].output @ torch.ones(65)" in text
    assert "RuntimeError: size mismatch" in text


def test_a_shape_mismatch_that_the_model_meets(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[0].output = torch.ones(1, 5, 63)

    text = refused(trace)
    assert "RuntimeError" in text
    assert "63" in text
    assert "the model's own forward did, in `transformer.h.1.ln_1`, which was given [1, 5, 63]." in text
    assert "_call_impl" not in text


def test_a_prompt_without_tokens(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace("", remote=True):
            client.lm_head.output.save()

    text = refused(trace)
    assert "No line of your block raised this" in text
    assert text.endswith("Has your prompt any tokens?")


def test_a_block_that_wants_the_network(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            urllib.request.urlopen("http://example.com")

    text = refused(trace)
    assert "URLError" in text
    assert "it has no files, no network" in text


def test_a_setting_that_generation_refuses(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.generate(PROMPT, remote=True, max_new_tokens="seven") as tracer:
            tracer.result.save()

    assert "TypeError" in refused(trace)


def test_an_exception_in_an_invoke(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(remote=True) as tracer:
            with tracer.invoke(PROMPT):
                client.lm_head.output.save()
            with tracer.invoke("Two plus two is"):
                client.transformer.h[1].output[7, 7]

    text = refused(trace)
    assert "client.transformer.h[1].output[7, 7]" in text
    assert "IndexError" in text


def test_an_exception_in_the_second_trace_of_a_session(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.session(remote=True):
            with client.trace(PROMPT):
                one = client.transformer.h[0].output
            with client.trace(PROMPT):
                one.unheard_of

    text = refused(trace)
    assert "one.unheard_of" in text
    assert f"line {line_of('one.unheard_of')}" in text


def test_a_gradient_of_nothing(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            loss = client.lm_head.output.detach().sum()
            with loss.backward():
                loss.grad.save()

    assert "does not require grad" in refused(trace)


def test_a_value_that_cannot_travel(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import threading

            lock = nnsight.save(threading.Lock())
            client.lm_head.output.save()

    text = refused(trace)
    assert "pickle" in text
    assert "lock" in text


def test_a_python_module_that_is_not_there(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import numpyy  # noqa: F401

    text = refused(trace)
    assert "No module named 'numpyy'" in text
    assert "import numpyy" in text


def test_a_remote_trace_inside_a_remote_session(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)

    def trace() -> None:
        with client.session(remote=True):
            with client.trace(PROMPT, remote=True):
                client.lm_head.output.save()

    assert "leave out `remote=True`" in refused(trace)


def test_a_part_that_the_hosted_model_has_not(lab: Lab, tiny_models: Path) -> None:
    client = nnsight.TransformersModel(tiny.GPT2, task="text-generation")
    client.transformer.h[0].adapter = torch.nn.Linear(64, 64)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.transformer.h[0].adapter(client.transformer.h[0].output)

    text = refused(trace)
    assert "model.transformer.h.0.adapter" in text
    assert "same checkpoint" in text


def test_an_unknown_model(lab: Lab, tiny_models: Path) -> None:
    """The lab's own model is hosted on the other server only."""
    client = lab.client(tiny.GPT2)
    backend = stock.RemoteBackend(client.to_model_key().replace("gpt2-tiny", "gpt9"), env={})

    def trace() -> None:
        with client.trace(PROMPT, backend=backend):
            client.lm_head.output.save()

    text = refused(trace)
    assert "interlace-tests/gpt9" in text
    for name in (tiny.GPT2, tiny.LLAMA, tiny.NEOX, tiny.BERT):
        assert name in text


def test_a_hosted_model_for_another_task(lab: Lab) -> None:
    client = nnsight.TransformersModel(tiny.GPT2, task="feature-extraction")

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.output.save()

    text = refused(trace)
    assert "feature-extraction" in text
    assert "text-generation" in text


def test_a_class_that_is_not_served(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    backend = stock.RemoteBackend('os.system:{"repo_id": "x"}', env={})

    def trace() -> None:
        with client.trace(PROMPT, backend=backend):
            client.lm_head.output.save()

    text = refused(trace)
    assert "os.system" in text
    assert "nnsight.modeling.transformers.TransformersModel" in text


def test_an_attention_implementation_that_the_server_has_not(lab: Lab) -> None:
    client = lab.client(tiny.GPT2)
    backend = stock.RemoteBackend(client.to_model_key(), env={"attn_implementation": "flash_attention_2"})

    def trace() -> None:
        with client.trace(PROMPT, backend=backend):
            client.lm_head.output.save()

    assert "flash" in refused(trace).lower()


def test_a_client_that_is_too_old(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    client = lab.client(tiny.GPT2)
    monkeypatch.setattr(stock, "_NNSIGHT_VERSION", "0.5.12")

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.lm_head.output.save()

    text = refused(trace)
    assert "0.5.12" in text
    assert "pip install --upgrade nnsight" in text


def test_a_body_over_the_limit(models: Lab, on_processes: running.Running) -> None:
    client = models.client(tiny.GPT2)
    generator = torch.Generator().manual_seed(0)
    heavy = torch.randn(2_000_000, generator=generator)

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            heavy.sum().save()

    text = refused(trace)
    assert "4,194,304 bytes" in text
    assert "limits.payload_bytes" in text


def test_a_model_that_failed_to_load(models: Lab, on_processes: running.Running) -> None:
    client = nnsight.TransformersModel(tiny.BROKEN, task="text-generation")

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.lm_head.output.save()

    text = refused(trace)
    assert tiny.BROKEN in text
    assert "could not be loaded" in text
    assert "not of the shapes that its config.json says (mismatched sizes)" in text
    assert "above report" not in text
    assert "Traceback" not in text


def post(server: running.Running, blob: bytes, **envelope: Any) -> httpx.Response:
    """Post a payload without nnsight."""
    key = {"repo_id": tiny.GPT2, "revision": None, "task": "text-generation"}
    data = {
        "model_key": f"nnsight.modeling.transformers.TransformersModel:{json.dumps(key)}",
        "session_id": "",
        "compress": False,
        "env": {},
        **envelope,
    }
    files = {"blob": ("request", blob, "application/octet-stream")}
    return httpx.post(
        f"{server.url}/request", data={"data": json.dumps(data)}, files=files, headers=HEADERS, timeout=60
    )


@pytest.mark.parametrize(
    ("blob", "compress"),
    [(b"", False), (b"GET / HTTP/1.1", False), (b"not a frame", True), (b"\x28\xb5\x2f\xfd", True)],
    ids=["empty", "text", "not-zstd", "cut"],
)
def test_bytes_that_are_no_payload(on_ray: running.Running, blob: bytes, compress: bool) -> None:
    response = post(on_ray, blob, compress=compress)
    assert response.status_code == 422
    assert "payload" in response.json()["detail"].lower()


@pytest.mark.parametrize(
    "blob",
    [pickle.dumps({"a": 1}), b"\x80\x04garbage.", pickle.dumps(list(range(100)))[:-20]],
    ids=["another-object", "garbage", "cut"],
)
def test_a_pickle_that_is_no_trace(lab: Lab, on_ray: running.Running, blob: bytes) -> None:
    response = post(on_ray, zstandard.compress(blob), compress=True)
    assert response.status_code == 200
    assert "not a serialized nnsight trace" in failure(on_ray, response.json()["id"])


def test_a_frame_that_unpacks_to_something_else(lab: Lab, on_ray: running.Running) -> None:
    response = post(on_ray, zstandard.compress(b"\x80\x04N.")[:-1] + b"?", compress=True)
    assert "payload" in failure(on_ray, response.json()["id"]).lower()


def failure(server: running.Running, job_id: str) -> str:
    """How a job that nobody waits for ended; it must be an error."""
    backend = stock.RemoteBackend("any", host=server.url, blocking=False, job_id=job_id)
    with pytest.raises(RemoteError) as caught:
        polled(backend)
    return str(caught.value)


def polled(backend: stock.RemoteBackend) -> None:
    import time

    end = time.monotonic() + 120
    while time.monotonic() < end:
        backend.poll()
        time.sleep(0.05)
    raise AssertionError(f"no end within two minutes; last status {backend.status}")


@pytest.mark.parametrize(
    "change",
    [
        {"model_key": "nonsense"},
        {"session_id": "../../keys"},
        {"id": "0" * 32},
        {"trusted": True},
        {"env": {"attn_implementation": 7}},
        {"compress": "maybe"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_envelope_that_is_wrong(on_ray: running.Running, change: dict[str, Any]) -> None:
    response = post(on_ray, b"\x80\x04N.", **change)
    assert response.status_code == 422
    assert next(iter(change)) in response.json()["detail"].replace("model key", "model_key")


def test_a_session_that_was_not_given_out(on_ray: running.Running) -> None:
    response = post(on_ray, b"\x80\x04N.", session_id="0" * 32)
    assert response.status_code == 409
    assert "/subscribe" in response.json()["detail"]


def test_a_server_that_is_not_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    client = lab.client(tiny.GPT2)
    with pytest.raises(OSError, match="refused"), client.trace(PROMPT, remote=True):
        client.lm_head.output.save()
