"""`client.artifacts` against a real gateway: what it sends, and what it believes of what comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import Gateway
from uploads import ADAPTER, WEIGHTS

import interlace
from interlace import InterlaceError, Refused
from interlace.protocol.artifact import Artifact


@pytest.fixture
def client(gateway: Gateway) -> Iterator[interlace.Client]:
    with interlace.Client(gateway.url) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, data in ADAPTER.items():
        (folder / name).write_bytes(data)
    (folder / "optimizer.pt").write_bytes(b"not for others")
    return folder


def test_each_way_to_name_one(client: interlace.Client, folder: Path) -> None:
    artifact = client.artifacts.upload(folder)
    assert isinstance(artifact, interlace.Artifact)
    assert artifact.name == "adapter"
    assert [file.name for file in artifact.files] == sorted(ADAPTER)
    for name in (artifact, artifact.id, artifact.ref, f"artifact:{artifact.id}", artifact.ref[:40]):
        assert client.artifacts.get(name) == artifact
    assert client.artifacts.all()[0] == artifact
    with pytest.raises(InterlaceError, match="has the hash"):
        client.artifacts.get(f"artifact:{artifact.id}@{'0' * 64}")
    with pytest.raises(Refused, match="that is yours") as unknown:
        client.artifacts.get("0" * 16)
    assert unknown.value.http_status == 404


def test_a_folder_without_what_it_needs(client: interlace.Client, tmp_path: Path) -> None:
    before = client.artifacts.all()
    with pytest.raises(InterlaceError, match=r"has no adapter_config\.json; a peft artifact is made of"):
        client.artifacts.upload(tmp_path)
    with pytest.raises(InterlaceError, match=r"has no pytorch_lora_weights\.safetensors"):
        client.artifacts.upload(tmp_path, kind="diffusers-lora")
    assert client.artifacts.all() == before


def test_what_comes_damaged_is_not_kept(
    gateway: Gateway, client: interlace.Client, folder: Path, tmp_path: Path
) -> None:
    artifact = client.artifacts.upload(folder)
    stored = Path(gateway.config.store_url) / "artifacts" / "local" / artifact.id / "adapter_model.safetensors"
    stored.write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(InterlaceError, match="came damaged"):
        client.artifacts.download(artifact, tmp_path / "back")
    assert not (tmp_path / "back" / "adapter_model.safetensors").exists()


def test_a_manifest_of_tomorrow_can_be_read(client: interlace.Client, folder: Path) -> None:
    artifact = client.artifacts.upload(folder)
    assert Artifact.model_validate(artifact.model_dump() | {"card": {"parent": "x"}}) == artifact
