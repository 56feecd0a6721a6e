"""Artifacts of a lake as tests plant them: small files, and the lineage that a job would have written."""

import json
import time
from typing import Any

import safetensors.torch
import torch

from interlace.protocol.artifact import Artifact, ArtifactKind, Base, Lineage
from interlace.protocol.model import ModelKey
from interlace_state.lake.graph import Viewer
from interlace_state.lake.records import Heritage, RunRecord, model_id
from interlace_state.models import ModelCard
from interlace_state.settings.limits import Admission
from interlace_state.store import State

KEY = ModelKey(repo_id="lab/tiny")
COMMIT = "c" * 40
MODEL = model_id(KEY.canonical, COMMIT)
CARD = ModelCard(key=KEY, commit=COMMIT, dtype="float32", config={"model_type": "gpt2", "n_embd": 8}, n_params=1000)
BASE = Base(repo_id=KEY.repo_id, key=KEY.canonical, commit=COMMIT)
MINE, THEIRS = Viewer("lab-a"), Viewer("lab-b")
WEIGHTS = safetensors.torch.save({"base_model.model.a.lora_A.weight": torch.ones(2, 8)})


def lineage(job: str, method: str = "elm.erase@1", parents: tuple[str, ...] = (), **more: Any) -> Lineage:
    return Lineage(
        job=job, method=method, model=KEY.canonical, commit=COMMIT, params_sha256="0" * 64, parents=parents, **more
    )


def ran(of: Lineage, heritage: tuple[Heritage, ...] = (), ended: float | None = None) -> RunRecord:
    return RunRecord(
        id=of.job,
        tenant="lab-a",
        ended=ended or time.time(),
        status="completed",
        lineage=of,
        heritage=heritage,
    )


async def add(
    state: State, name: str, *, kind: ArtifactKind = "peft", tenant: str = "lab-a", mark: int = 0, **more: Any
) -> Artifact:
    files = {
        "peft": {
            "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 2, "mark": mark}).encode(),
            "adapter_model.safetensors": WEIGHTS,
        },
        "sketch": {"sketch.json": b"{}", "sketch.safetensors": WEIGHTS},
        "texts": {"texts.json": json.dumps({"texts": ["a" * (1 + mark)]}).encode()},
    }[kind]
    staged = {}
    for file, data in files.items():
        staged[file] = state.artifacts.stage()
        staged[file].write_bytes(data)
    return await state.artifacts.add(tenant, kind, staged, Admission(), name=name, **more)


async def names(state: State, viewer: Viewer, text: str) -> list[str]:
    return [one.name for one in (await state.lake.search(viewer, text, limit=200)).entries]
