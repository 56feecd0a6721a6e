"""`interlace models`: what is known, what is here, what cannot be had."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from interlace_deploy.own_hub import own_hub

Interlace = Callable[..., "subprocess.CompletedProcess[str]"]


def test_list(interlace: Interlace, tiny_models: Path, tmp_path: Path) -> None:
    listed = json.loads(interlace("models", "list", "--json", INTERLACE_CACHE_DIR=str(tmp_path)).stdout)
    by_name = {model["name"]: model for model in listed}
    assert by_name["smollm2-135m-instruct"] == {
        "name": "smollm2-135m-instruct",
        "repo_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "path": None,
        "size_bytes": 0,
    }
    assert by_name[tiny.GPT2]["size_bytes"] > 100_000


def test_list_for_people(interlace: Interlace, tiny_models: Path, tmp_path: Path) -> None:
    header, first, *_ = interlace("models", "list", INTERLACE_CACHE_DIR=str(tmp_path)).stdout.splitlines()
    assert header.split() == ["name", "clients", "write", "size", "where"]
    assert first.split() == ["smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "not", "here", "yet"]


def test_pull_what_is_here(interlace: Interlace, tiny_models: Path) -> None:
    done = interlace("models", "pull", tiny_models, tiny.GPT2)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["local/own-model", tiny.GPT2]


def test_weights_do_not_come_from_a_gateway(interlace: Interlace, tmp_path: Path) -> None:
    """In the shell where the line for clients was pasted."""
    ours = {"HF_ENDPOINT": "http://127.0.0.1:9/hf", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    nowhere = {"https_proxy": "http://127.0.0.1:9"}
    done = interlace("models", "pull", "org/none", **ours, **nowhere)
    assert done.returncode == 1
    first, said = done.stderr.splitlines()[:2]
    assert first == "HF_ENDPOINT is http://127.0.0.1:9/hf, a gateway's own, which has no weights: the hub is asked."
    assert "the hub (https://huggingface.co) did not give it" in said


@pytest.mark.parametrize(
    ("endpoint", "host", "ours"),
    [
        ("https://interlace.lab/hf", "https://interlace.lab/", True),
        ("http://localhost:8000/hf/", "", True),
        ("http://[::1]:8000/hf", "", True),
        ("https://mirror.lab/hf", "https://interlace.lab", False),
        ("http://127.0.0.1:8000", "", False),
        ("http://[/hf", "", False),
        ("", "", False),
    ],
)
def test_which_hub_is_a_gateways(endpoint: str, host: str, ours: bool) -> None:
    found = own_hub({"HF_ENDPOINT": endpoint, "NDIF_HOST": host})
    assert found == (endpoint.rstrip("/") if ours else None)


def test_pull_what_cannot_be_had(interlace: Interlace, tiny_models: Path, tmp_path: Path) -> None:
    done = interlace("models", "pull", "org/none", tiny_models)
    assert done.returncode == 1
    assert done.stdout.startswith("local/own-model")
    assert done.stderr.startswith("interlace: org/none: org/none is not complete in the local Hugging Face cache")
    assert "Traceback" not in done.stderr
