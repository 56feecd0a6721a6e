"""`/v1/lake` on a real gateway, with the client and keys of two tenants."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import hub_server
import pytest
import safetensors.torch
import torch
from gateway_process import COMMIT, KEY, Gateway, mint, publish
from transformers import GPT2Config, GPT2LMHeadModel
from uploads import ADAPTER, upload

import interlace
from interlace import InterlaceError
from interlace.protocol.errors import InvalidArtifact
from interlace_state.lake.records import model_id
from interlace_state.store import open_state


@pytest.fixture
def client(gateway: Gateway) -> Any:
    with interlace.connect(gateway.url) as client:
        yield client


@pytest.mark.usefixtures("state")
def test_an_upload_is_found_described_and_cited(gateway: Gateway, client: interlace.Client) -> None:
    artifact = upload(gateway.url, name="Sunny adapter", model=KEY.repo_id).json()
    model = model_id(KEY.canonical, COMMIT)
    page = client.lake.search(f"sunny kind:peft works-with:{KEY.repo_id}")
    assert [one.id for one in page.entries] == [artifact["id"]]
    assert page.filters == {"kind": ("peft",), "works-with": (KEY.repo_id,)}
    assert [one.id for one in client.lake.all("kind:model state:hosted")] == [model]
    card = client.lake.card(page.entries[0])
    assert {one.field: one.source for one in card.statements}["base"] == "declared"
    graph = client.lake.lineage(artifact["id"])
    assert [(edge.parent, edge.child) for edge in graph.edges] == [(model, artifact["id"])]
    assert artifact["hash"] in client.lake.cite(artifact["id"]).bibtex
    client.lake.tag(f"artifact:{artifact['id']}", "latest")
    assert client.lake.resolve("lake://local/sunny-adapter:latest").hash == artifact["hash"]
    assert [one.tags for one in client.lake.versions("lake://local/sunny-adapter")] == [("latest",)]
    client.lake.untag(artifact["id"], "latest")
    client.lake.change(artifact["id"], declared={"license": "mit"})
    assert [one.id for one in client.lake.search("declared:license=mit").entries] == [artifact["id"]]
    request = client.lake.compare(model, artifact["id"]).request
    assert request == {
        "method": "lake.compare",
        "model": KEY.slug,
        "params": {"other": f"artifact:{artifact['id']}@{artifact['hash']}"},
    }
    client.lake.delete(artifact["id"])
    with pytest.raises(InterlaceError, match="yours"):
        client.lake.card(artifact["id"])
    assert client.lake.lineage(artifact["id"]).nodes[0].state == "deleted"


@pytest.mark.usefixtures("state")
def test_what_is_wrong_is_said(client: interlace.Client, gateway: Gateway) -> None:
    with pytest.raises(InterlaceError, match="no filter; there are"):
        client.lake.search("colour:red")
    with pytest.raises(InterlaceError, match="expected lake://OWNER/NAME"):
        client.lake.resolve("lake://x")
    with pytest.raises(InterlaceError, match="yours"):
        client.lake.card("0" * 16)
    answer = httpx.patch(f"{gateway.url}/v1/lake/{'0' * 16}", json={"name": "x"})
    assert answer.status_code == 422
    assert "`name`" in answer.json()["detail"]


@pytest.mark.usefixtures("state")
def test_hugging_face_folders_come_in_and_go_out_as_they_were(client: interlace.Client, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in ADAPTER.items():
        (folder / name).write_bytes(data)
    head = "---\nlicense: cc-by-4.0\ntags: [style, small]\nbase_model: lab/tiny\nother: 1\n---\n# An adapter\n"
    (folder / "README.md").write_text(head)
    artifact = client.lake.import_folder(folder, model=KEY.repo_id)
    assert artifact.declared == {"license": "cc-by-4.0", "tags": "style, small", "base_model": "lab/tiny"}
    out = client.lake.export_folder(artifact, tmp_path / "out")
    for name, data in ADAPTER.items():
        assert (out / name).read_bytes() == data
    assert client.lake.verify(out)
    text = (out / "README.md").read_text()
    assert "license: cc-by-4.0" in text
    assert "| license | cc-by-4.0 | declared |" in text
    again = client.lake.import_folder(out)
    assert again.hash == artifact.hash
    assert again.declared["license"] == "cc-by-4.0"
    (out / "adapter_model.safetensors").write_bytes(b"other")
    assert not client.lake.verify(out)

    whole = tmp_path / "whole"
    whole.mkdir()
    safetensors.torch.save_file(
        {"a": torch.ones(2), "steps": torch.ones(1, dtype=torch.int64)}, whole / "model.safetensors"
    )
    (whole / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    model = client.lake.import_folder(whole)
    assert (model.kind, model.n_params, model.facts) == ("weights", 3, {"model_type": "gpt2"})
    assert [one.id for one in client.lake.search("kind:weights arch:gpt2").entries] == [model.id]
    with pytest.raises(InterlaceError, match=r"expected one of: adapter_model\.safetensors and adapter_config\.json"):
        client.lake.import_folder(tmp_path)
    for one in (artifact, again, model):
        client.lake.delete(one)


@pytest.mark.usefixtures("state")
def test_a_checkpoint_in_several_files_comes_in_as_one(client: interlace.Client, tmp_path: Path) -> None:
    """As transformers shards it, out of a repository of a hub."""
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=8, vocab_size=32, bos_token_id=0, eos_token_id=0)
    module = GPT2LMHeadModel(config)
    module.save_pretrained(tmp_path / "model", max_shard_size="4KB")
    files = {one.name: one.read_bytes() for one in (tmp_path / "model").iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    files["README.md"] = b"---\nlicense: mit\n---\n"
    script = "import interlace, sys\nwith interlace.connect(sys.argv[1]) as client:\n"
    script += "    print(client.lake.import_repo('lab/Tiny').id)\n"
    with hub_server.running(files) as environ:
        elsewhere = {**os.environ, **environ, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", script, client.url]
        ran = subprocess.run(command, env=elsewhere, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    model = client.artifacts.get(ran.stdout.split()[-1])
    source = f"https://huggingface.co/lab/Tiny/tree/{hub_server.COMMIT}"
    assert (model.kind, model.name, model.declared) == ("weights", "lab/Tiny", {"license": "mit", "source": source})
    loaded = GPT2LMHeadModel.from_pretrained(client.lake.export_folder(model, tmp_path / "out"))
    for name, one in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], one), name
    client.lake.delete(model)
    index = tmp_path / "model" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    for name, where in (("transformer.none", said["weight_map"]["transformer.wte.weight"]), ("x", "../x.safetensors")):
        index.write_text(json.dumps({"weight_map": said["weight_map"] | {name: where}}))
        with pytest.raises(InvalidArtifact, match=r"is not where|is no file beside it"):
            client.lake.import_folder(tmp_path / "model")


async def test_tenants_share_what_they_want(start_gateway: Any) -> None:
    with start_gateway(gateway={"public_url": "http://lake.test"}) as gateway:
        config = gateway.config
        async with open_state(config) as state:
            await publish(state, config)
        mine, theirs = (mint(str(config.redis.url), config.redis.prefix, tenant) for tenant in ("lab-a", "lab-b"))
        artifact = upload(gateway.url, key=mine, name="shared").json()
        with interlace.connect(gateway.url, mine) as owner, interlace.connect(gateway.url, theirs) as other:

            def sees() -> bool:
                return [one.id for one in other.lake.search("shared").entries] == [artifact["id"]]

            assert not sees()
            with pytest.raises(InterlaceError, match="yours"):
                other.artifacts.open(artifact["id"])
            owner.lake.change(artifact["id"], visibility="public")
            assert sees()
            assert other.artifacts.open(artifact["id"]).kind == "peft"
            for refused in (
                lambda: other.lake.delete(artifact["id"]),
                lambda: other.artifacts.delete(artifact["id"]),
                lambda: other.lake.change(artifact["id"], visibility="private"),
            ):
                with pytest.raises(InterlaceError, match="yours"):
                    refused()
            owner.lake.change(artifact["id"], visibility="private")
            assert not sees()
            assert [one.id for one in owner.lake.search("shared").entries] == [artifact["id"]]
            assert "http://lake.test/v1/lake/" in owner.lake.cite(artifact["id"]).bibtex
