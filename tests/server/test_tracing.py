"""Traces of requests: the client's context goes on, a collector that is slow or away costs nobody anything."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import otlp_collector
import pytest
from gateway_process import DEADLINE, HEADERS, Gateway, Worker, publish, saved, until
from otlp_collector import Collector

from interlace_state.store import State, open_state
from interlace_state.tracing import checked

GatewayFactory = Callable[..., AbstractContextManager[Gateway]]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with otlp_collector.running() as collector:
        yield collector


@pytest.fixture
def traced(start_gateway: GatewayFactory, collector: Collector) -> Iterator[Gateway]:
    with start_gateway(telemetry={"endpoint": collector.url}) as gateway:
        yield gateway


@pytest.fixture
async def own_state(traced: Gateway) -> AsyncIterator[State]:
    async with open_state(traced.config) as state:
        await publish(state, traced.config)
        yield state


async def _posted(gateway: Gateway, worker: Worker, traceparent: str) -> str:
    """What the job of such a request carries."""
    answer = await asyncio.to_thread(gateway.post, headers=HEADERS | {"traceparent": traceparent})
    assert answer.status_code == 200
    lease = await worker.start()
    await worker.complete(lease, saved())
    return lease.job.traceparent


async def test_a_clients_trace_goes_on(traced: Gateway, own_state: State, collector: Collector) -> None:
    carried = await _posted(traced, Worker(own_state), f"00-{TRACE}-{PARENT}-01")
    await asyncio.to_thread(until, lambda: collector.seen, "the span")
    (span,) = collector.seen
    assert (span.service, span.name, span.trace, span.parent) == ("interlace-gateway", "submit", TRACE, PARENT)
    assert carried == f"00-{TRACE}-{span.id}-01"
    assert span.attributes["interlace.status"] == "200"
    assert span.span.end_time_unix_nano > span.span.start_time_unix_nano


async def test_a_client_that_does_not_sample_is_heeded(traced: Gateway, own_state: State, collector: Collector) -> None:
    assert (await _posted(traced, Worker(own_state), f"00-{TRACE}-{PARENT}-00")).endswith("-00")
    assert not (await _posted(traced, Worker(own_state), "nonsense")).startswith(f"00-{TRACE}")
    await asyncio.to_thread(until, lambda: collector.seen, "the second request's span")
    assert [one.parent for one in collector.seen] == [""]


async def test_without_an_endpoint_a_context_only_passes(start_gateway: GatewayFactory) -> None:
    with start_gateway() as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            carried = f"00-{TRACE}-{PARENT}-01"
            assert await _posted(gateway, Worker(state), carried) == carried
            assert await _posted(gateway, Worker(state), "") == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_what_is_no_traceparent(text: str) -> None:
    assert checked(text) == ""


async def test_a_collector_that_hangs_holds_up_nobody(traced: Gateway, own_state: State, collector: Collector) -> None:
    collector.answering.clear()
    worker = Worker(own_state)
    for _ in range(10):
        await _posted(traced, worker, "")
    traced.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(traced.process.wait, DEADLINE) == 0  # the collector never answers
    assert collector.seen == []


async def test_a_collector_that_is_away_costs_spans_only(start_gateway: GatewayFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with start_gateway(telemetry={"endpoint": f"http://127.0.0.1:{port}"}) as gateway:
        async with open_state(gateway.config) as state:
            await publish(state, gateway.config)
            for _ in range(3):
                await _posted(gateway, Worker(state), "")
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, DEADLINE) == 0


def _started(tmp_path: Path, redis_url: str, endpoint: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """A gateway that does not come up, and the lines of Python that ran before it."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"redis": {"url": redis_url}, "telemetry": {"endpoint": endpoint}}))
    code = f"import sys\n{before}\nfrom interlace_server.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "--config", str(file), "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_an_endpoint_without_the_library_is_one_sentence(tmp_path: Path, redis_url: str) -> None:
    hidden = "sys.modules['opentelemetry.sdk.trace'] = None"
    done = _started(tmp_path, redis_url, "http://127.0.0.1:4318", hidden)
    assert done.returncode == 2
    assert "pip install 'interlace[otel]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_endpoint_that_is_no_url_is_one_sentence(tmp_path: Path, redis_url: str) -> None:
    done = _started(tmp_path, redis_url, "collector:4318")
    assert done.returncode == 2
    assert "telemetry.endpoint" in done.stderr
    assert "expected http://HOST" in done.stderr


def test_the_library_is_loaded_for_an_endpoint_only() -> None:
    code = """
import sys, interlace_server.__main__
from interlace_state.settings.services import TelemetryConfig
from interlace_state.tracing import Tracing
Tracing(TelemetryConfig(), "tests").begin("span").end()
assert "opentelemetry.sdk.trace" not in sys.modules
Tracing(TelemetryConfig(endpoint="http://127.0.0.1:1"), "tests")
assert "opentelemetry.sdk.trace" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


async def test_what_is_left_is_sent_at_the_end(traced: Gateway, own_state: State, collector: Collector) -> None:
    await _posted(traced, Worker(own_state), "")
    traced.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(traced.process.wait, DEADLINE) == 0
    assert [one.name for one in collector.seen] == ["submit"]
