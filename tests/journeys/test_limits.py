"""Promise: a block that ends, kills, floods or never ends its process ends its own request, with an error that says so.

The server's limits are small here (see `process_server`). The request after it gives the same bits as the one before.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import running
import tiny
import torch
from nnsight.intervention.backends.remote import RemoteError
from parity import Lab

PROMPT = "The Eiffel Tower is in the city of"
PATIENCE = 100.0  # seconds


@pytest.fixture
def client(models: Lab, on_processes: running.Running) -> Any:
    return models.client(tiny.GPT2)


def logits_of(client: Any) -> torch.Tensor:
    with client.trace(PROMPT, remote=True):
        logits = client.lm_head.output.detach().save()
    return logits


def refused(client: Any, trace: Callable[[], None]) -> str:
    """What the client raises, in good time; afterwards the server is as it was."""
    before = logits_of(client)
    started = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        trace()
    assert time.monotonic() - started < PATIENCE
    assert torch.equal(logits_of(client), before)
    return str(caught.value)


def test_sys_exit(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import sys

            sys.exit(3)

    text = refused(client, trace)
    assert "SystemExit: 3" in text
    assert "sys.exit(3)" in text


def test_a_keyboard_interrupt(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            client.lm_head.output.save()
            raise KeyboardInterrupt

    assert "KeyboardInterrupt" in refused(client, trace)


def test_os_exit(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import os

            os._exit(7)

    assert "exit code 7" in refused(client, trace)


def test_an_exit_that_looks_like_success(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import os

            os._exit(0)

    assert "exit code 0" in refused(client, trace)


def test_a_segmentation_fault(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import ctypes

            print("the last words", flush=True)
            ctypes.string_at(0)

    said = refused(client, trace)
    assert "SIGSEGV" in said
    assert "It was run 2 times" in said
    assert "printed last: 'the last words'" in said


def test_an_abort(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import os

            os.abort()

    assert "abort" in refused(client, trace)


def test_a_kill(client: Any) -> None:
    """Process 1 of its own namespace is not killed by its own signal."""
    before = logits_of(client)
    with client.trace(PROMPT, remote=True):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        logits = client.lm_head.output.detach().save()
    assert torch.equal(logits, before)


def test_an_endless_loop(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            count = 0
            while True:
                count += 1

    assert "limits.wall_seconds" in refused(client, trace)


def test_an_endless_wait(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import signal
            import threading

            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            threading.Event().wait()

    assert "limits.wall_seconds" in refused(client, trace)


def test_too_much_memory_in_one_piece(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            torch.ones(1 << 30)

    text = refused(client, trace)
    assert "over its memory limit of 0.5 GiB." in text
    assert "limits.memory_bytes" in text
    assert "torch.ones(1 << 30)" in text


def test_too_much_memory_bit_by_bit(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            hoard = []
            while True:
                hoard.append(torch.ones(1 << 20))

    assert "limits.memory_bytes" in refused(client, trace)


def test_too_much_memory_for_python(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            hoard = []
            while True:
                hoard.append(bytearray(16 << 20))

    assert "limits.memory_bytes" in refused(client, trace)


def test_a_result_over_the_limit(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            torch.zeros(3_000_000).save()
            large = torch.rand(3_000_000).save()
            large.mean()

    text = refused(client, trace)
    assert "limits.result_bytes" in text
    assert "8,388,608 bytes" in text


def test_endless_recursion(client: Any) -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            deeper(0)

    assert "RecursionError" in refused(client, trace)


def test_a_flood_of_output_is_cut_and_the_result_still_comes(client: Any) -> None:
    before = logits_of(client)
    with client.trace(PROMPT, remote=True):
        for _ in range(20_000):
            print("a line of forty characters, again and again")
        logits = client.lm_head.output.detach().save()
    assert torch.equal(logits, before)


def test_threads_left_behind(client: Any) -> None:
    before = logits_of(client)
    with client.trace(PROMPT, remote=True):
        import threading

        threading.Thread(target=threading.Event().wait).start()
        logits = client.lm_head.output.detach().save()
    assert torch.equal(logits, before)


def test_another_process(client: Any) -> None:
    def trace() -> None:
        with client.trace(PROMPT, remote=True):
            import subprocess

            subprocess.Popen(["sleep", "300"])

    text = refused(client, trace)
    assert "PermissionError" in text
    assert "no other processes" in text
