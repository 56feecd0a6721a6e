"""Artifacts never change, are their tenant's alone, and are known from their manifests when Redis is not."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from interlace.protocol.artifact import AdapterRef, Artifact, Base
from interlace.protocol.errors import InvalidArtifact, LimitExceeded, StoreFull, UnknownArtifact
from interlace_state.config import Config
from interlace_state.settings.limits import Admission
from interlace_state.settings.services import StoreConfig
from interlace_state.store import State, open_state

WEIGHTS = safetensors.torch.save({"base_model.model.a.lora_A.weight": torch.ones(2, 8)})
CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "lab/base"}).encode()
FILES = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}


async def add(
    state: State, tenant: str = "lab-a", files: dict[str, bytes] | None = None, limits: Admission | None = None
) -> Artifact:
    staged = {}
    for name, data in (FILES if files is None else files).items():
        staged[name] = state.artifacts.stage()
        staged[name].write_bytes(data)
    return await state.artifacts.add(tenant, "peft", staged, limits or Admission(), name="mine", creator="k1")


def kept(config: Config) -> list[str]:
    """The files of all artifacts."""
    root = Path(config.store_url) / "artifacts"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_it_comes_back_as_it_was_and_says_what_it_is(state: State, config: Config) -> None:
    before = time.time()
    artifact = await add(state)
    assert await state.artifacts.find(artifact.id, "lab-a") == artifact
    assert [await state.artifacts.read(artifact, name) for name in FILES] == list(FILES.values())
    size, stream = await state.artifacts.open(artifact, "adapter_model.safetensors")
    assert b"".join([piece async for piece in stream(3, size)]) == WEIGHTS[3:]
    assert (artifact.kind, artifact.tenant, artifact.creator, artifact.name) == ("peft", "lab-a", "k1", "mine")
    assert artifact.base == Base(repo_id="lab/base")
    assert (artifact.n_params, artifact.facts) == (16, {"peft_type": "LORA", "rank": 2})
    assert artifact.size == len(CONFIG) + len(WEIGHTS)
    assert before - 1 <= artifact.created <= time.time()
    manifest = Path(config.store_url) / "artifacts" / "lab-a" / artifact.id / "manifest.json"
    assert Artifact.model_validate_json(manifest.read_text()) == artifact


async def test_a_hash_is_of_the_contents(state: State) -> None:
    one, same = await add(state), await add(state, "lab-b")
    other = await add(state, files=FILES | {"adapter_config.json": CONFIG + b" "})
    assert one.hash == same.hash != other.hash
    assert len({one.id, same.id, other.id}) == 3
    for ref in (f"artifact:{one.id}", one.ref, f"artifact:{one.id}@{one.hash[:12]}"):
        assert await state.artifacts.named(AdapterRef.parse(ref, "x"), "lab-a") == one
    with pytest.raises(UnknownArtifact):
        await state.artifacts.named(AdapterRef.parse(f"artifact:{one.id}@{other.hash}", "x"), "lab-a")


async def test_anothers_is_as_unknown_as_one_that_never_was(state: State) -> None:
    artifact = await add(state)
    texts = []
    for wanted in (artifact.id, "0" * 16):
        with pytest.raises(UnknownArtifact) as unknown:
            await state.artifacts.find(wanted, "lab-b")
        texts.append(str(unknown.value).replace(wanted, "ID"))
    assert texts[0] == texts[1]
    assert await state.artifacts.all("lab-b") == []
    assert await state.artifacts.all(None) == [artifact]


async def test_a_file_is_one_that_the_manifest_names(state: State) -> None:
    artifact = await add(state)
    for name in ("manifest.json", "../../../secret", "", "adapter_model.bin"):
        with pytest.raises(UnknownArtifact):
            await state.artifacts.read(artifact, name)
        with pytest.raises(UnknownArtifact):
            await state.artifacts.open(artifact, name)


async def test_what_was_changed_in_the_store_is_not_given_out(state: State, config: Config) -> None:
    artifact = await add(state)
    file = Path(config.store_url) / "artifacts" / "lab-a" / artifact.id / "adapter_model.safetensors"
    file.write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(InvalidArtifact, match="is not what was uploaded"):
        await state.artifacts.read(artifact, file.name)


async def test_deleted_means_gone(state: State, config: Config) -> None:
    artifact, other = await add(state), await add(state)
    await state.artifacts.delete(artifact)
    with pytest.raises(UnknownArtifact):
        await state.artifacts.find(artifact.id, "lab-a")
    assert await state.artifacts.all("lab-a") == [other]
    assert all(name.startswith(f"lab-a/{other.id}/") for name in kept(config))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"adapter_config.json": CONFIG}, "adapter_model.safetensors is missing"),
        (FILES | {"adapter_model.bin": b"\x80\x04N."}, "'adapter_model.bin' is no file of .* It may be a pickle"),
        (FILES | {"../evil.json": b"{}"}, "is no file of a peft artifact"),
        (FILES | {"manifest.json": b"{}"}, "is no file of a peft artifact"),
        (FILES | {"adapter_model.safetensors": b"\x80\x04N."}, "no safetensors file"),
        (FILES | {"adapter_config.json": b"{}"}, "`peft_type`"),
    ],
)
async def test_what_is_refused_leaves_nothing(
    state: State, config: Config, files: dict[str, bytes], sentence: str
) -> None:
    with pytest.raises(InvalidArtifact, match=sentence):
        await add(state, files=files)
    assert kept(config) == []
    assert await state.artifacts.all(None) == []


async def test_a_tenant_has_so_many_and_so_much(state: State, config: Config) -> None:
    with pytest.raises(LimitExceeded, match=r"`limits\.artifact_bytes`"):
        await add(state, limits=Admission(artifact_bytes=10))
    few = Admission(kept_artifacts=2)
    for _ in range(2):
        await add(state, limits=few)
    with pytest.raises(LimitExceeded, match=r"`limits\.kept_artifacts`"):
        await add(state, limits=few)
    await add(state, "lab-b", limits=few)
    size = len(CONFIG) + len(WEIGHTS)
    with pytest.raises(LimitExceeded, match=r"`limits\.kept_artifact_bytes`.* `interlace artifacts delete`"):
        await add(state, limits=Admission(kept_artifact_bytes=3 * size - 1))
    assert len(await state.artifacts.all("lab-a")) == 2
    assert len(kept(config)) == 9


async def test_uploads_that_come_at_once_do_not_pass_the_bound_together(state: State, config: Config) -> None:
    few = Admission(kept_artifacts=3)
    ends = await asyncio.gather(*(add(state, limits=few) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(end, Artifact | LimitExceeded) for end in ends)
    artifacts = await state.artifacts.all("lab-a")
    assert len(artifacts) <= 3
    assert len(kept(config)) == 3 * len(artifacts)


async def test_a_full_disk_takes_none(config: Config) -> None:
    full = config.model_copy(update={"store": StoreConfig(url=config.store.url, min_free_bytes=1 << 50)})
    async with open_state(full) as state:
        with pytest.raises(StoreFull, match=r"`store\.min_free_bytes`"):
            await add(state)


async def test_the_index_is_made_from_the_manifests(state: State, config: Config) -> None:
    artifacts = [await add(state), await add(state, "lab-b"), await add(state)]
    root = Path(config.store_url) / "artifacts"
    stray = root / "lab-a" / ("f" * 16)
    fresh = root / "lab-a" / ("e" * 16)
    for folder in (stray, fresh):
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes(CONFIG)
    os.utime(stray / "adapter_config.json", (0, 0))
    forged = root / "lab-c" / artifacts[0].id
    forged.mkdir(parents=True)
    (forged / "manifest.json").write_text(artifacts[0].model_dump_json())  # says that it is lab-a's
    (root / "lab-a" / ("d" * 16)).mkdir()
    (root / "lab-a" / ("d" * 16) / "manifest.json").write_text("{")
    await state.redis.flushdb()
    assert await state.artifacts.all(None) == []
    await state.artifacts.make_sure_of_index()
    assert await state.artifacts.all(None) == sorted(artifacts, key=lambda one: (-one.created, one.id))
    assert {one.id for one in await state.artifacts.all("lab-a")} == {artifacts[0].id, artifacts[2].id}
    assert await state.artifacts.all("lab-c") == []
    assert (stray.exists(), fresh.exists()) == (False, True)
