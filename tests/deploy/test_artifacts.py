"""`interlace artifacts` as it is typed, against a real gateway."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import gateway_process
from gateway_process import DEADLINE, KEY
from uploads import ADAPTER

from interlace_state.store import open_state


async def typed(url: str, folder: Path, *words: str) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "interlace_deploy", "artifacts", *words],
        env={**os.environ, "NDIF_HOST": url, "INTERLACE_STATE_DIR": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    return process.returncode, out, err


async def test_up_list_down_and_away(tmp_path: Path, redis_url: str) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir()
    for name, data in ADAPTER.items():
        (source / name).write_bytes(data)
    (source / "adapter_model.bin").write_bytes(b"\x80\x04N.")  # stays where it is
    with gateway_process.running(tmp_path, redis_url, gateway={"drain_seconds": 0}) as gateway:
        async with open_state(gateway.config) as state:
            await gateway_process.publish(state, gateway.config)
        code, out, err = await typed(gateway.url, elsewhere, "upload", str(source), "--model", KEY.repo_id)
        assert (code, err) == (0, "")
        ref = out.strip()
        code, out, _ = await typed(gateway.url, elsewhere, "list")
        row = out.splitlines()[1].split()
        assert row[:4] == [ref.partition("@")[0], "peft", "source", KEY.repo_id]
        assert row[4:6] == [f"{sum(map(len, ADAPTER.values())) / 1000:.1f}", "kB"]
        code, out, _ = await typed(gateway.url, elsewhere, "list", "--json")
        (one,) = json.loads(out)
        assert ref == f"artifact:{one['id']}@{one['hash']}"
        code, out, _ = await typed(gateway.url, elsewhere, "download", ref, "back")
        assert code == 0
        assert {file.name: file.read_bytes() for file in (elsewhere / "back").iterdir()} == ADAPTER
        code, out, _ = await typed(gateway.url, elsewhere, "delete", ref)
        assert (code, out) == (0, f"{ref} is gone\n")
        code, _, err = await typed(gateway.url, elsewhere, "delete", ref)
        assert code == 1
        assert "that is yours: it never was, or has been deleted" in err
        (source / "adapter_model.safetensors").unlink()
        code, _, err = await typed(gateway.url, elsewhere, "upload", str(source))
        assert code == 1
        assert "has no adapter_model.safetensors" in err
