"""The hub's subset, asked by hand and by the real huggingface_hub, transformers and nnsight."""

import asyncio
import hashlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import tiny_diffusion
from gateway_process import COMMIT, KEY, Gateway, publish
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, PreTrainedTokenizerFast

from interlace.protocol.model import ModelKey
from interlace_state.store import State


@pytest.fixture
async def files(state: State, tmp_path: Path) -> dict[str, bytes]:
    """The small files of `lab/tiny`, as transformers saves them, put into the state."""
    folder = tmp_path / "tiny"
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    config = GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in found.items():
        await state.models.put_file(KEY, name, content)
    return found


async def python(gateway: Gateway, home: Path, code: str) -> Any:
    """The JSON that a client's code prints; its hub is our gateway and its cache is empty."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NDIF_"))}
    environment |= {
        "HF_ENDPOINT": f"{gateway.url}/hf",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NDIF_HOST": gateway.url,
        "OMP_NUM_THREADS": "1",
        # Nothing else can be reached.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
    }
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.usefixtures("files")
async def test_what_is_no_model_of_ours_is_told_to_be_the_hubs(gateway: Gateway, tmp_path: Path) -> None:
    code = """
import json
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
said = []
for ask in (
    lambda: HfApi().dataset_info("lab/texts"),
    lambda: HfApi().dataset_info("lab/texts", revision="main"),
    lambda: HfApi().space_info("lab/space"),
    lambda: HfApi().get_paths_info("lab/texts", "a.json", repo_type="dataset"),
    lambda: hf_hub_download("lab/texts", "a.json", repo_type="dataset"),
    lambda: HfApi().model_info("lab/adapter"),
):
    try:
        ask()
    except RepositoryNotFoundError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    said = await python(gateway, tmp_path, code)
    assert len(said) == 6
    for sentence in said:
        assert "What else the hub has comes from the hub, in a process without HF_ENDPOINT." in sentence
    assert all("This server has no " in sentence for sentence in said[:5])


@pytest.mark.usefixtures("files")
async def test_the_real_client_finds_config_tokenizer_and_id(gateway: Gateway, tmp_path: Path) -> None:
    code = """
import json
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoTokenizer
info = HfApi().model_info("lab/tiny")
print(json.dumps([
    AutoConfig.from_pretrained("lab/tiny").n_embd,
    AutoTokenizer.from_pretrained("lab/tiny")("a b")["input_ids"],
    info.id, info.sha, info.pipeline_tag, sorted(HfApi().list_repo_files("lab/tiny")),
]))
"""
    found = await python(gateway, tmp_path / "home", code)
    assert found[:5] == [8, [1, 2], "lab/tiny", COMMIT, "text-generation"]
    assert "config.json" in found[5]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("revision", ["main", COMMIT])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_file_has_the_headers_that_the_client_caches_by(
    gateway: Gateway, files: dict[str, bytes], method: str, revision: str
) -> None:
    answer = httpx.request(method, f"{gateway.url}/hf/lab/tiny/resolve/{revision}/config.json")
    assert answer.status_code == 200
    assert answer.headers["x-repo-commit"] == COMMIT
    assert answer.headers["content-length"] == str(len(files["config.json"]))
    assert answer.headers["etag"] == f'"{hashlib.sha256(files["config.json"]).hexdigest()}"'
    assert answer.content == (files["config.json"] if method == "GET" else b"")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("path", "code", "sentence"),
    [
        ("lab/tiny/resolve/main/model.safetensors", "EntryNotFound", "never weights"),
        ("lab/tiny/resolve/main/../../../secret", "RepoNotFound", None),
        ("lab/tiny/resolve/main/%2e%2e/%2e%2e/config.json", "EntryNotFound", "no file"),
        ("lab/tiny/resolve/v2/config.json", "RevisionNotFound", "is hosted at revision main"),
        ("lab/other/resolve/main/config.json", "RepoNotFound", "Hosted models: lab/tiny"),
        ("api/models/lab/other", "RepoNotFound", "Hosted models: lab/tiny"),
        ("api/models/lab/tiny/revision/v2", "RevisionNotFound", "is hosted at revision main"),
        ("api/models/lab/tiny/revision/main/more", "RevisionNotFound", "not at main/more"),
        ("api/models/lab/tiny/tree/main/additional_chat_templates", "EntryNotFound", "no folder"),
        ("api/agent-harnesses", None, None),
    ],
)
def test_what_is_missing_is_said_in_the_hubs_codes(
    gateway: Gateway, path: str, code: str | None, sentence: str | None
) -> None:
    answer = gateway.get(f"/hf/{path}")
    assert answer.status_code == 404
    if sentence is not None:
        assert answer.headers["x-error-code"] == code
        assert sentence in answer.json()["detail"]


@pytest.mark.parametrize("path", ["", "/revision/main", f"/revision/{COMMIT}"])
@pytest.mark.parametrize("repo_id", ["lab/tiny", "Lab/Tiny"])
def test_a_models_card(gateway: Gateway, files: dict[str, bytes], repo_id: str, path: str) -> None:
    info = gateway.get(f"/hf/api/models/{repo_id}{path}").json()
    assert (info["id"], info["modelId"], info["sha"]) == ("lab/tiny", "lab/tiny", COMMIT)
    assert (info["pipeline_tag"], info["library_name"]) == ("text-generation", "transformers")
    assert {sibling["rfilename"]: sibling["size"] for sibling in info["siblings"]} == {
        name: len(content) for name, content in files.items()
    }


async def test_folders_and_revisions_with_slashes(gateway: Gateway, state: State) -> None:
    key = ModelKey(wrapper="DiffusionModel", repo_id="lab/pictures", revision="refs/pr/1", task=None)
    await publish(state, gateway.config, key)
    await state.models.put_file(key, "unet/config.json", b"{}")
    await state.models.put_file(key, "model_index.json", b"{ }")
    for revision in ("refs%2Fpr%2F1", "refs/pr/1", "main", COMMIT):
        answer = await asyncio.to_thread(gateway.get, f"/hf/lab/pictures/resolve/{revision}/unet/config.json")
        assert answer.content == b"{}", revision
        tree = await asyncio.to_thread(gateway.get, f"/hf/api/models/lab/pictures/tree/{revision}/unet")
        assert [(entry["type"], entry["path"], entry["size"]) for entry in tree.json()] == [
            ("file", "unet/config.json", 2)
        ]
        top = await asyncio.to_thread(gateway.get, f"/hf/api/models/lab/pictures/tree/{revision}")
        assert [(entry["type"], entry["path"], entry["size"]) for entry in top.json()] == [
            ("file", "model_index.json", 3),
            ("directory", "unet", 0),
        ]
        info = await asyncio.to_thread(gateway.get, f"/hf/api/models/lab/pictures/revision/{revision}")
        assert info.json()["library_name"] == "diffusers"


@pytest.fixture
async def pictures(state: State, gateway: Gateway) -> dict[str, bytes]:
    """The small files of a hosted pipeline of diffusers."""
    key = ModelKey(wrapper="DiffusionModel", repo_id="lab/pictures", task=None)
    await publish(state, gateway.config, key)
    found = {
        str(path.relative_to(tiny_diffusion.ASSET)): path.read_bytes()
        for path in tiny_diffusion.ASSET.rglob("*.json")
        if not path.name.endswith(".index.json")
    }
    for name, content in found.items():
        await state.models.put_file(key, name, content)
    return found


async def test_the_real_client_builds_a_pipeline_without_weights(
    gateway: Gateway, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    code = """
import json
from huggingface_hub import HfApi
from nnsight.modeling.diffusion import DiffusionModel
model = DiffusionModel("lab/pictures")
found = sorted(HfApi().list_repo_files("lab/pictures"))
folders = [entry.path for entry in HfApi().list_repo_tree("lab/pictures") if not hasattr(entry, "size")]
shape = list(model.unet.mid_block.resnets[0].conv1.weight.shape)
print(json.dumps([model.to_model_key(), type(model.pipeline).__name__, model.dispatched, shape, found, folders]))
"""
    found = await python(gateway, tmp_path / "home", code)
    assert found[0].startswith("nnsight.modeling.diffusion.DiffusionModel:")
    assert json.loads(found[0].split(":", 1)[1])["repo_id"] == "lab/pictures"
    assert found[1:3] == ["StableDiffusionPipeline", False]
    assert found[3] == [96, 96, 3, 3]
    assert found[4] == sorted(pictures)
    assert found[5] == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "unet",
        "unet/",
        "unet//config.json",
        "./unet/config.json",
        "unet/../vae/config.json",
        "unet/%2e%2e/%2e%2e/lab-tiny/config.json",
        "..%2f..%2fresults%2fx",
        "%2fetc%2fpasswd",
        "unet%5c..%5cconfig.json",
        "unet%00/config.json",
    ],
)
def test_a_components_folder_leads_nowhere_else(gateway: Gateway, name: str) -> None:
    port = urlsplit(gateway.url).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)  # which leaves the path as it is
    connection.request("GET", f"/hf/lab/pictures/resolve/main/{name}")
    answer = connection.getresponse()
    assert answer.status == 404
    assert answer.getheader("x-error-code") == "EntryNotFound"
    connection.close()


async def test_a_model_at_main_goes_before_one_at_another_revision(gateway: Gateway, state: State) -> None:
    other = ModelKey(repo_id="lab/tiny", revision="v9")
    await publish(state, gateway.config, other, commit="f" * 40)
    for revision, commit in (("main", COMMIT), ("v9", "f" * 40), ("f" * 40, "f" * 40)):
        info = await asyncio.to_thread(gateway.get, f"/hf/api/models/lab/tiny/revision/{revision}")
        assert info.json()["sha"] == commit
