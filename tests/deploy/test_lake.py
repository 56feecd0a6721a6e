"""`interlace lake` as it is typed, against a real gateway; and `rebuild` on the store alone."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gateway_process
import pytest
from gateway_process import COMMIT, KEY
from uploads import ADAPTER

from interlace_deploy.cli import main
from interlace_state.lake.records import model_id
from interlace_state.store import open_state


async def test_the_lake_from_a_shell(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "sunny"
    source.mkdir()
    for name, data in ADAPTER.items():
        (source / name).write_bytes(data)
    (source / "README.md").write_text("---\nlicense: mit\n---\n")

    def typed(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["lake", *words]) == code, capsys.readouterr()
        found = capsys.readouterr()
        return found.out if code == 0 else found.err

    with gateway_process.running(tmp_path, redis_url, gateway={"drain_seconds": 0}) as gateway:
        monkeypatch.setenv("NDIF_HOST", gateway.url)
        async with open_state(gateway.config) as state:
            await gateway_process.publish(state, gateway.config)
            await state.models.publish((await state.models.find(KEY)).card)
        ref = typed("import", str(source), "--model", KEY.repo_id).strip()
        entry = ref.removeprefix("artifact:").partition("@")[0]
        model = model_id(KEY.canonical, COMMIT)
        assert typed("search", "sunny", "kind:peft").splitlines()[1].split()[:2] == [entry, "peft"]
        assert "license" in typed("show", ref)
        assert f"< {KEY.repo_id}  model {model} [base, declared]" in typed("lineage", entry)
        assert "lake://local/sunny:paper" in typed("tag", entry, "paper")
        assert typed("versions", "lake://local/sunny:paper").count(entry) == 1
        assert "@misc{" in typed("cite", entry)
        typed("declare", entry, "description=bright pictures")
        assert "bright pictures" in typed("show", entry)
        assert "expected NAME=TEXT" in typed("declare", entry, "nothing", code=2)
        assert "is public now" in typed("share", entry, "public")
        assert "hash" in typed("compare", model, entry)
        typed("export", entry, str(tmp_path / "out"))
        assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == ADAPTER["adapter_model.safetensors"]
        before = json.loads(typed("search", "--json", "--limit", "50"))

        config = gateway.config
        names = {"REDIS__URL": config.redis.url, "REDIS__PREFIX": config.redis.prefix, "STORE__URL": config.store_url}
        for name, value in names.items():
            monkeypatch.setenv(f"INTERLACE_{name}", str(value))
        async with open_state(config) as state:
            lost = [
                f"{config.redis.prefix}{name}" for name in ("artifacts", "lake:models", "lake:tags", "lake:version")
            ]
            await state.redis.delete(*lost)
        counts = typed_elsewhere(capsys)
        assert counts == "1 artifacts, 1 models, 0 runs, 0 tombstones, 1 tags\n"
        assert json.loads(typed("search", "--json", "--limit", "50")) == before

        typed("untag", entry, "paper")
        assert "a tombstone stays" in typed("delete", entry)
        assert "that is yours" in typed("show", entry, code=1)
        assert "(deleted)" in typed("lineage", entry)


def typed_elsewhere(capsys: pytest.CaptureFixture[str]) -> str:
    """`interlace lake rebuild`, in a loop of its own."""
    capsys.readouterr()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(main, ["lake", "rebuild"]).result() == 0
    return capsys.readouterr().out
