"""Where models come from: packages, folders, the hub's cache and a hub of our own."""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hub_server
import pytest
import tiny
import torch
from hub_server import COMMIT, Hub
from huggingface_hub.utils import validate_repo_id
from tiny_gguf import llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from interlace.protocol.model import ModelKey
from interlace_state.config import Config
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import card as cards
from interlace_workers.sources import naming, package, resolving
from interlace_workers.sources.catalogue import Entry
from interlace_workers.sources.source import Source, SourceError, as_repo_name

MEMBER = "tiny_llama/tiny.gguf"
SPEC = f"package:tiny-llama==1.0/{MEMBER}"
RESOLVE = """
import sys
from pathlib import Path
from interlace_state.settings.models import ModelConfig
from interlace_workers.sources import resolving
from interlace_workers.sources.source import SourceError
try:
    model = ModelConfig(source=sys.argv[1], revision=sys.argv[3])
    source = resolving.resolve(model, Path(sys.argv[2]), lambda line: print(line, flush=True))
except SourceError as error:
    sys.exit(str(error))
print(source.repo_id, source.commit, source.path, sep="|")
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[LlamaForCausalLM], Path]:
    """Makes a wheel with the model's GGUF, which pip finds as it finds any."""

    def make(model: LlamaForCausalLM, **extra: str) -> Path:
        folder = tmp_path / "index"
        folder.mkdir()
        wheel = folder / "tiny_llama-1.0-py3-none-any.whl"
        info = "tiny_llama-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(write_gguf(model, tmp_path / "tiny.gguf", **extra), MEMBER)
            archive.writestr("tiny_llama/__init__.py", "raise RuntimeError('the package was imported')")
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        return wheel

    return make


def resolve(source: str, cache: Path, lines: list[str] | None = None, **settings: Any) -> Source:
    say = (lines if lines is not None else []).append
    return resolving.resolve(ModelConfig(source=source, **settings), cache, say)


def refusal(source: str, cache: Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        resolve(source, cache, **settings)
    return str(caught.value)


# package:


def test_a_package_is_fetched_and_converted_once_and_never_imported(
    tmp_path: Path, index: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    index(llama())
    first: list[str] = []
    source = resolve(SPEC, tmp_path / "cache", first, repo_id="lab/tiny")
    assert source.repo_id == "lab/tiny"
    assert re.fullmatch("[0-9a-f]{40}", source.commit)
    assert any("hash was not checked" in line for line in first)
    assert set(source.hub_files()) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    card = cards.card(source, ModelKey(repo_id="lab/tiny"), ModelConfig(source=SPEC, dtype="float32"))
    assert card.n_params == llama().num_parameters()
    assert card.size_bytes == 4 * llama().num_parameters()
    assert card.config["model_type"] == "llama"

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    second: list[str] = []
    assert resolve(SPEC, tmp_path / "cache", second, repo_id="lab/tiny") == source
    assert second == []
    folders = [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert folders == [source.path]
    assert source.path in [model.path for model in resolving.cached(tmp_path / "cache")]


def test_what_an_older_converter_made_is_made_anew(tmp_path: Path, index: Callable[..., Path]) -> None:
    index(llama())
    old = cache_folder(tmp_path / "cache")
    old.mkdir(parents=True)
    (old / package.MANIFEST).write_text(json.dumps({"converter": -1}))
    (old / "config.json").write_text("{}")
    source = resolve(SPEC, tmp_path / "cache")
    assert source.path == old
    assert json.loads((old / "config.json").read_text())["model_type"] == "llama"


def cache_folder(cache: Path) -> Path:
    digest = hashlib.sha256(SPEC.encode()).hexdigest()[:8]
    return cache / "models" / f"{package.unvouched(SPEC).name}-{digest}"


@pytest.mark.parametrize("wrong", ["gguf_sha256", "wheel_sha256"])
def test_a_file_with_another_hash_is_not_used(tmp_path: Path, index: Callable[..., Path], wrong: str) -> None:
    wheel = index(llama())
    hashes = {
        "gguf_sha256": hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest(),
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    }
    entry = Entry(source=SPEC, name="tiny", repo_id="lab/tiny", **(hashes | {wrong: "0" * 64}))
    with pytest.raises(SourceError, match=f"its SHA-256 is {hashes[wrong]}, expected 0000"):
        package.resolve(entry, ModelConfig(source=SPEC), tmp_path / "cache", print)
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_package_in_another_architecture_leaves_nothing(tmp_path: Path, index: Callable[..., Path]) -> None:
    index(llama(), architecture="phi3")
    assert "architecture `phi3`" in refusal(SPEC, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_release_and_a_file_that_are_not_there_are_named(tmp_path: Path, index: Callable[..., Path]) -> None:
    index(llama())
    assert "pip could not download tiny-llama==9.9" in refusal("package:tiny-llama==9.9/x.gguf", tmp_path)
    said = refusal("package:tiny-llama==1.0/tiny_llama/other.gguf", tmp_path)
    assert "has no file tiny_llama/other.gguf" in said
    assert MEMBER in said


@pytest.mark.parametrize("source", ["package:tiny-llama", "package:--index-url==1/x.gguf", "package:a==1/x.bin"])
def test_a_malformed_package_is_told_its_form(tmp_path: Path, source: str) -> None:
    assert "package:DISTRIBUTION==VERSION/path/in/wheel.gguf" in refusal(source, tmp_path)


def test_two_processes_convert_once(tmp_path: Path, index: Callable[..., Path]) -> None:
    index(llama())
    folder = cache_folder(tmp_path / "cache")
    folder.parent.mkdir(parents=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        both = [start(SPEC, tmp_path / "cache") for _ in range(2)]
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("waiting for another process")
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).count("converting") == 1
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1]


def start(
    source: str, cache: Path, environ: Mapping[str, str] | None = None, revision: str = "main"
) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", RESOLVE, source, str(cache), revision]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(environ or {})})


def test_the_catalogue_model_knows_the_eiffel_tower() -> None:
    """The real one, kept in the user's cache."""
    source = resolve("smollm2-135m-instruct", Config().cache_dir)
    assert source.repo_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    prompt = tokenizer("The Eiffel Tower is in the city of", return_tensors="pt").input_ids
    assert tokenizer.decode(model(prompt).logits[0, -1].argmax()) == " Paris"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(asked, max_new_tokens=12, do_sample=False)[0, asked.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    card = cards.card(source, ModelKey(repo_id=source.repo_id), ModelConfig(source="smollm2-135m-instruct"))
    assert card.n_params == 134_515_008


# folders


def test_a_folder_is_named_after_itself(tmp_path: Path) -> None:
    folder = tmp_path / "My model.. v2"
    llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.md").write_text("private")
    (folder / "modeling_mine.py").write_text("")
    source = resolve(str(folder), tmp_path / "cache")
    assert source.repo_id == "local/My-model.-v2"
    assert ModelKey.parse(ModelKey(repo_id=source.repo_id).canonical).repo_id == source.repo_id
    assert set(source.hub_files()) == {"config.json", "generation_config.json", "tokenizer.json"}
    assert "modeling_mine.py" in resolve(str(folder), tmp_path, trust_remote_code=True).hub_files()
    assert naming.name_of(ModelConfig(source=str(folder))) == source.repo_id
    assert resolve(str(folder), tmp_path, repo_id="lab/mine").repo_id == "lab/mine"


def test_clients_get_what_preprocessors_are_made_of(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    processors = {"preprocessor_config.json", "processor_config.json", "chat_template.jinja"}
    vocabularies = {
        "spiece.model",
        "source.spm",
        "target.spm",
        "vocab.json",
        "vocab-src.json",
        "vocab.txt",
        "merges.txt",
    }
    for name in processors | vocabularies | {"facts.json", "training_args.bin", "notes.txt"}:
        (tmp_path / name).write_text("{}")
    found = set(resolve(str(tmp_path), tmp_path / "cache").hub_files())
    assert found == processors | vocabularies | {"config.json", "generation_config.json"}


def test_a_folders_commit_changes_with_its_files(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    before = resolve(str(tmp_path), tmp_path).commit
    assert resolve(str(tmp_path), tmp_path).commit == before
    llama(seed=1).save_pretrained(tmp_path)
    assert resolve(str(tmp_path), tmp_path).commit != before


def test_a_relative_folder_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama().save_pretrained(tmp_path / "m", max_shard_size="50KB")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    monkeypatch.chdir(tmp_path)
    source = resolve("./m", tmp_path)
    card = cards.card(source, ModelKey(repo_id=source.repo_id), ModelConfig(source="./m", dtype="bfloat16"))
    assert (card.n_params, card.size_bytes) == (llama().num_parameters(), 2 * llama().num_parameters())
    next((tmp_path / "m").glob("model-*.safetensors")).unlink()
    assert "no complete model.safetensors" in refusal("./m", tmp_path)


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    assert "There is no folder" in refusal(str(tmp_path / "nothing"), tmp_path)
    assert "has no config.json" in refusal(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no complete model.safetensors" in refusal(str(tmp_path), tmp_path)


@pytest.mark.parametrize("text", ["a", "---", "x" * 300, "..hidden..", "ünïcode", "a--b", "repo.git", "1/2", "_x", " "])
def test_any_folder_name_makes_a_repo_name_that_a_client_can_write(text: str) -> None:
    repo_id = f"local/{as_repo_name(text)}"
    assert ModelKey.parse(ModelKey(repo_id=repo_id).canonical).repo_id == repo_id
    validate_repo_id(repo_id)


# the hub


def test_a_repository_in_the_local_cache_needs_no_network(tiny_models: Path, tmp_path: Path) -> None:
    source = resolve(tiny.LLAMA, tmp_path)
    assert source.repo_id == tiny.LLAMA
    assert source.commit == hashlib.sha1(tiny.LLAMA.encode()).hexdigest()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(source.hub_files())
    assert not [name for name in source.hub_files() if name.endswith((".safetensors", ".bin"))]
    assert tiny.LLAMA in [model.name for model in resolving.cached(tmp_path)]


@pytest.mark.parametrize("repo_id", ["interlace-tests/absent", "interlace-tests/partial"])
def test_offline_and_not_complete_in_the_cache_says_so(home: Path, tmp_path: Path, repo_id: str) -> None:
    repo = home / "hf" / "hub" / "models--interlace-tests--partial"
    (repo / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    (repo / "snapshots" / COMMIT / "config.json").write_text("{}")
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    assert repo_id not in [model.name for model in resolving.cached(tmp_path)]
    said = refusal(repo_id, tmp_path)
    assert repo_id in said
    assert "HF_HUB_OFFLINE" in said
    assert f"interlace models pull {repo_id}" in said


def test_what_names_nothing_is_told_the_kinds(tmp_path: Path) -> None:
    said = refusal("two words", tmp_path)
    assert "openai-community/gpt2" in said
    assert "smollm2-135m-instruct" in said


@pytest.fixture
def online(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A hub of our own with the repository lab/Tiny, and the environment of a process that uses it."""
    llama().save_pretrained(tmp_path / "m")
    others = {"README.md": b"#", "onnx/model.onnx": b"1", "pytorch_model.bin": b"2", "model.fp16.safetensors": b"3"}
    with hub_server.running({path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} | others) as environ:
        yield environ | {"HF_HOME": str(tmp_path / "hf")}


def run(source: str, cache: Path, environ: Mapping[str, str], revision: str = "main") -> tuple[str, str]:
    process = start(source, cache, environ, revision)
    out, err = process.communicate(timeout=120)
    return out, err.strip().splitlines()[-1] if err.strip() else ""


def test_the_hub_gives_what_is_needed_under_its_own_spelling(online: dict[str, str], tmp_path: Path) -> None:
    out, _ = run("lab/tiny", tmp_path, online)
    told, found = out.splitlines()
    assert told.startswith("downloading lab/Tiny")
    repo_id, commit, path = found.split("|")
    assert (repo_id, commit) == ("lab/Tiny", COMMIT)
    assert {file.name for file in Path(path).iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert set(Hub.fetched) == {"config.json", "generation_config.json", "model.safetensors"}
    again, _ = run("lab/Tiny", tmp_path, online | {"HF_HUB_OFFLINE": "1"})
    assert again == f"{found}\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [("gated/model", "accept its terms at"), ("nobody/nothing", "has no model nobody/nothing that you may read")],
)
def test_the_hubs_refusals_say_what_to_do(online: dict[str, str], tmp_path: Path, source: str, expected: str) -> None:
    _, said = run(source, tmp_path, online)
    assert expected in said
    assert "hf auth login" in said


def test_a_revision_that_is_not_there_is_named(online: dict[str, str], tmp_path: Path) -> None:
    assert "lab/tiny has no revision 'nonsense'" in run("lab/tiny", tmp_path, online, "nonsense")[1]


def test_a_repository_without_weights_is_refused(online: dict[str, str], tmp_path: Path) -> None:
    Hub.files = {"config.json": b"{}"}
    assert "holds neither model.safetensors nor" in run("lab/tiny", tmp_path, online)[1]
    Hub.files = {"README.md": b"#"}
    assert "holds no config.json" in run("lab/tiny", tmp_path, online)[1]


def test_no_network_says_so_and_what_works_without(online: dict[str, str], tmp_path: Path) -> None:
    _, said = run("lab/tiny", tmp_path, online | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "Check the network" in said
    assert "--model smollm2-135m-instruct" in said
