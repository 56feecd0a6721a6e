"""From the configuration to the catalogue: one bad model is no other's trouble, and a Redis prefix has one owner."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import Hub
from safetensors.torch import load_file

from interlace.protocol.event import Ended
from interlace.protocol.job import Job, JobState, Limits
from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.config_file import ConfigError, dump
from interlace_state.models import ModelCard, ModelState, Replica
from interlace_state.settings.models import ModelConfig
from interlace_state.settings.services import RedisConfig
from interlace_state.store import State, open_state
from interlace_workers.placement.place import place

Damage = Callable[[Path], Path]


@pytest.fixture
def config(redis_url: str, tmp_path: Path) -> Config:
    return Config(
        redis=RedisConfig(url=redis_url, prefix=f"{tmp_path.name}:"),
        state_dir=tmp_path / "state",
        cache_dir=tmp_path / "cache",
    )


@pytest.fixture
async def state(config: Config) -> AsyncIterator[State]:
    async with open_state(config) as state:
        yield state


def hosting(config: Config, *folders: Path, **settings: Any) -> Config:
    return config.model_copy(update={"models": tuple(ModelConfig(source=str(path), **settings) for path in folders)})


def shards(folder: Path, index: object) -> Path:
    (folder / "model.safetensors").unlink()
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def header(said: object) -> bytes:
    """A safetensors file that has a header and nothing else."""
    text = json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text


DAMAGES: dict[str, Damage] = {
    "config cut": lambda folder: written(folder / "config.json", b'{"model_type": "gpt'),
    "config of another shape": lambda folder: written(folder / "config.json", b"[]"),
    "config no text": lambda folder: written(folder / "config.json", b"\xff\xfe"),
    "config nested": lambda folder: written(folder / "config.json", b"[" * 100_000),
    "weights no safetensors": lambda folder: written(folder / "model.safetensors", b"these are no weights"),
    "weights cut": lambda folder: written(folder / "model.safetensors", header({"a": 1})[:-2]),
    "weights empty": lambda folder: written(folder / "model.safetensors", b""),
    "header of another shape": lambda folder: written(folder / "model.safetensors", header({"a": 1})),
    "header without a shape": lambda folder: written(folder / "model.safetensors", header({"a": {"dtype": "F32"}})),
    "header a list": lambda folder: written(folder / "model.safetensors", header([1])),
    "index without a map": lambda folder: shards(folder, {}),
    "index of another shape": lambda folder: shards(folder, [1]),
    "index cut": lambda folder: written(shards(folder, {}), b"{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
async def test_a_damaged_folder_fails_by_itself_and_names_the_file(
    config: Config, state: State, tiny_models: Path, tmp_path: Path, damage: Damage
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_models, folder)
    path = damage(folder)
    said: list[str] = []
    placements = await place(hosting(config, folder, tiny_models), state, said.append)
    assert [placement.key.repo_id for placement in placements] == ["local/own-model"]
    broken, fine = await state.models.all()
    assert (broken.card.key.repo_id, broken.state) == ("local/damaged", ModelState.FAILED)
    assert broken.card.failure is not None
    assert broken.card.failure.startswith(f"{path} is damaged (")
    assert (fine.card.key.repo_id, fine.state, fine.card.failure) == ("local/own-model", ModelState.DEPLOYING, None)
    assert said == [
        f"not placed {broken.card.key}: {broken.card.failure}",
        *(f"placed {m.card.key.slug}" for m in (broken, fine)),
    ]


def test_a_damaged_model_of_the_hubs_cache_is_not_listed(tiny_models: Path, tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        repo = tmp_path / "hub" / f"models--lab--{name}"
        shutil.copytree(tiny_models, repo / "snapshots" / ("a" * 40))
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("a" * 40)
    shards(repo / "snapshots" / ("a" * 40), {})
    code = (
        "import sys; from pathlib import Path; from interlace_workers.sources import resolving;"
        "print([model.name for model in resolving.cached(Path(sys.argv[1]))])"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert listed.stdout == "['lab/whole']\n"


async def test_what_a_former_run_left_is_withdrawn_and_its_jobs_end(
    config: Config, state: State, tiny_models: Path, tmp_path: Path
) -> None:
    former, nowhere = ModelKey(repo_id="former/model"), ModelKey(repo_id="local/nowhere")
    for key in (former, nowhere):
        await state.models.publish(ModelCard(key=key, commit="0" * 40, dtype="float32", config={}))
        await state.models.beat(key, Replica(id="r", state=ModelState.READY, pid=1, node="n"))
        await state.queue.submit(job(key), waiting_jobs=9, running_jobs=9, kept_jobs=99, model_ready=True)
    await place(hosting(config, tiny_models, tmp_path / "nowhere"), state, lambda line: None)
    hosted = {model.card.key.repo_id: model.state for model in await state.models.all()}
    assert hosted == {"local/own-model": ModelState.DEPLOYING, "local/nowhere": ModelState.FAILED}
    for key, said in ((former, "is no longer hosted on this server."), (nowhere, "There is no folder")):
        end = await state.events.last(job(key).id, job(key).tenant)
        assert isinstance(end, Ended)
        assert (end.state, said in end.text) == (JobState.ERROR, True)


async def test_hub_files_are_those_of_today(config: Config, state: State, tiny_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_models, folder)
    (folder / "merges.txt").write_text("")
    for there in (True, False):
        [placement] = await place(hosting(config, folder), state, lambda line: None)
        assert ("merges.txt" in await state.models.file_sizes(placement.key)) is there
        (folder / "merges.txt").unlink(missing_ok=True)


async def test_two_folders_of_one_name_are_refused_before_anything_is_read(config: Config, state: State) -> None:
    folders = (Path("/runs/a/final"), Path("/runs/b/final"))
    with pytest.raises(ConfigError) as caught:
        await place(hosting(config, *folders), state, lambda line: None)
    assert str(caught.value) == (
        "`models[0]` (/runs/a/final) and `models[1]` (/runs/b/final) are both local/final (text-generation) to "
        "clients: give one of them another `repo_id`, or for more copies of one model set `replicas`."
    )
    assert await state.models.all() == []


def test_two_spellings_of_one_model_are_refused(config: Config, tiny_models: Path, tmp_path: Path) -> None:
    """Only the hub knows that they are one."""
    file = tmp_path / "config.json"
    models = tuple(ModelConfig(source=source) for source in ("lab/tiny", "lab/Tiny"))
    file.write_text(dump(config.model_copy(update={"models": models, "runtime": "process"})))
    with hub_server.running({path.name: path.read_bytes() for path in tiny_models.iterdir()}) as environ:
        placer = subprocess.run(
            [sys.executable, "-m", "interlace_workers", "--config", str(file)],
            env={**os.environ, **environ, "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert placer.returncode == 1
    said = "`models[0]` (lab/tiny) and `models[1]` (lab/Tiny) are both lab/Tiny (text-generation) to clients:"
    assert placer.stderr.startswith(said)


FORGET = """
import asyncio, os, sys
from pathlib import Path
from interlace.protocol.model import ModelKey
from interlace_state.config_file import load
from interlace_state.settings.models import ModelConfig
from interlace_state.store import open_state
from interlace_workers.placement.place import Search, find

async def main():
    config = load(Path(sys.argv[1]), os.environ)
    async with open_state(config) as state:
        search = Search(print, lambda done, total: None)
        finding = asyncio.create_task(find(config, state, ModelConfig(source="lab/Tiny"), search))
        await asyncio.to_thread(input)
        finding.cancel()

asyncio.run(main())
"""


def test_a_download_that_nobody_wants_any_more_ends(config: Config, tiny_models: Path, tmp_path: Path) -> None:
    """And whoever began it can, too, before the last byte."""
    file = tmp_path / "config.json"
    file.write_text(dump(config))
    files = {path.name: path.read_bytes() for path in tiny_models.iterdir()}
    with hub_server.running(files, holds="model.safetensors") as environ:
        with subprocess.Popen(
            [sys.executable, "-c", FORGET, str(file)],
            env={**os.environ, **environ, "HF_HOME": str(tmp_path / "hf")},
            stdin=subprocess.PIPE,
        ) as begun:
            assert Hub.reached.wait(120)
            begun.communicate(b"\n", timeout=60)
            assert begun.returncode == 0
        assert Hub.left.wait(60)


def test_a_placer_that_is_told_to_stop_waits_for_no_download(config: Config, tiny_models: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(dump(config.model_copy(update={"models": (ModelConfig(source="lab/Tiny"),), "runtime": "process"})))
    files = {path.name: path.read_bytes() for path in tiny_models.iterdir()}
    with (
        hub_server.running(files, holds="model.safetensors") as environ,
        subprocess.Popen(
            [sys.executable, "-m", "interlace_workers", "--config", str(file)],
            env={**os.environ, **environ, "HF_HOME": str(tmp_path / "hf")},
        ) as placer,
    ):
        assert Hub.reached.wait(120)
        placer.terminate()
        assert placer.wait(60) == 0
        assert Hub.left.wait(60)


async def test_one_folder_for_two_tasks_is_two_models(config: Config, state: State, tiny_models: Path) -> None:
    models = [ModelConfig(source=str(tiny_models), task=task) for task in ("text-generation", "feature-extraction")]
    placements = await place(config.model_copy(update={"models": tuple(models)}), state, lambda line: None)
    assert len({placement.key for placement in placements}) == 2


RESIDENT: dict[str, Any] = {"executor": "resident", "trusted": ("lab",)}


@pytest.mark.parametrize(
    ("settings", "widths"), [({"dtype": "float32"}, 1), ({"dtype": "bfloat16"}, 1 / 2), (RESIDENT, 0)]
)
async def test_a_load_says_what_its_weights_take_of_the_machines_memory(
    config: Config, state: State, tiny_models: Path, settings: dict[str, Any], widths: float
) -> None:
    (placement,) = await place(hosting(config, tiny_models, **settings), state, lambda line: None)
    stored = sum(tensor.nbytes for tensor in load_file(tiny_models / "model.safetensors").values())  # in float32
    assert placement.load.size_bytes == stored * widths


def job(key: ModelKey) -> Job:
    return Job(
        id=key.slug,
        tenant="local",
        model=key,
        compress=True,
        limits=Limits(),
        payload_bytes=1,
        submitted_at=time.time(),
    )
