"""`interlace deploy, scale, evict, models`: what is typed, in the words of the configuration; the rest is a journey."""

import argparse
import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gateway_process
import pytest
from gateway_process import Gateway

from interlace.protocol.model import ModelKey
from interlace_deploy.cli import main
from interlace_deploy.commands.hosting import seconds, terms
from interlace_deploy.problems import UsageProblem
from interlace_state.store import open_state

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]


def typed(**options: Any) -> dict[str, Any]:
    return terms(argparse.Namespace(**{"replicas": None, "idle": None, "pin": None, **options}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": "3"}, {"replicas": 3}),
        ({"replicas": "0:2"}, {"autoscale": {"least": 0, "most": 2}}),
        ({"replicas": "2:2"}, {"replicas": 2}),
        (
            {"replicas": "0:2", "idle": "30m"},
            {"autoscale": {"least": 0, "most": 2, "idle_seconds": 1800}, "idle_seconds": 1800},
        ),
        ({"idle": "never"}, {"idle_seconds": None}),
        ({"pin": False}, {"pin": False}),
        ({}, {}),
    ],
)
def test_terms(options: dict[str, Any], said: dict[str, Any]) -> None:
    assert typed(**options) == said


@pytest.mark.parametrize("replicas", ["0", "0:0", "2:1", "two", "1:", "-1"])
def test_replicas_that_cannot_be(replicas: str) -> None:
    with pytest.raises(UsageProblem, match=r"MIN:MAX such as 0:2"):
        typed(replicas=replicas)


def test_times() -> None:
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h", "1d")] == [90, 90, 90, 7200, 86400]
    with pytest.raises(UsageProblem, match="30m"):
        seconds("soon")


def test_nothing_runs(interlace: Interlace) -> None:
    for words in (("models",), ("deploy", "a/b"), ("scale", "a/b", "--pin"), ("evict", "a/b")):
        done = interlace(*words, "--url", "http://127.0.0.1:9")
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr


def test_scale_with_nothing_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "a/b", "--url", "http://127.0.0.1:9"]) == UsageProblem.code
    assert "Nothing to change" in capsys.readouterr().err


async def test_a_short_name_is_one_for_every_command(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def typed(gateway: Gateway, command: str, *words: str) -> int:
        return main([command, "smollm2-135m-instruct", "--url", gateway.url, *words])

    with gateway_process.running(tmp_path, redis_url) as gateway:
        assert await asyncio.to_thread(typed, gateway, "deploy", "--no-wait") == 0
        assert await asyncio.to_thread(typed, gateway, "scale", "--replicas", "0:2") == 0
        assert "HuggingFaceTB/SmolLM2-135M-Instruct: 0:2 replicas" in capsys.readouterr().out
        assert await asyncio.to_thread(typed, gateway, "evict", "--forget") == 0
        assert "HuggingFaceTB/SmolLM2-135M-Instruct is hosted no longer." in capsys.readouterr().out


async def test_a_resident_model_by_command(redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def typed(gateway: Gateway, *words: str) -> int:
        return main(["deploy", "a/b", "--no-wait", "--url", gateway.url, *words])

    with gateway_process.running(tmp_path, redis_url) as gateway:
        assert await asyncio.to_thread(typed, gateway, "--device", "cuda") == 1
        assert "name the tenants that you trust in `trusted`" in capsys.readouterr().err
        assert await asyncio.to_thread(typed, gateway, "--device", "cuda:1", "--trusted", "lab", "ops") == 0
        async with open_state(gateway.config) as state:
            record = await state.desired.find(ModelKey(repo_id="a/b"))
    assert record is not None
    asked_for = record.model
    assert (asked_for.executor, asked_for.device, asked_for.trusted) == ("resident", "cuda:1", ("lab", "ops"))
