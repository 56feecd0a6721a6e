"""Promise: an adapter that a request names is on for this request, with its local values, and then gone."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import running
import tiny
import tiny_adapters
import torch
from gateway_keys import key_for
from nnsight import CONFIG, TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from parity import assert_same

import interlace

PROMPT = "The Eiffel Tower is in the city of"
BASES = (tiny.GPT2, tiny.LLAMA)


@pytest.fixture(scope="module")
def shelf(home: Path, tiny_models: Path) -> Path:
    """A folder of the server whose adapters may be named by their paths: two of each base."""
    folder = home / "shelf"
    for repo_id in BASES:
        for number in (1, 2):
            tiny_adapters.write(folder / f"{repo_id.rpartition('/')[2]}-{number}", repo_id, number)
    return folder


@pytest.fixture(scope="module")
def server(home: Path, shelf: Path) -> Iterator[running.Running]:
    configuration = {
        "runtime": "process",
        "isolation": "required",
        "models": [{"source": name, "repo_id": name, "threads": 1, "slots": 2} for name in BASES],
        "adapters": {"folders": [str(shelf)], "hub": ["allowed/*"], "max_rank": 64, "max_bytes": 1 << 20},
        "gateway": {"port": 0, "drain_seconds": 1},
    }
    with running.interlace(home, configuration, seconds=300) as server:
        yield server


@pytest.fixture(scope="module")
def keys(server: running.Running) -> dict[str, str]:
    return {tenant: key_for(server, tenant) for tenant in ("lab-a", "lab-b")}


@pytest.fixture(autouse=True)
def to_server(server: running.Running, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", keys["lab-a"])


@pytest.fixture
def own(server: running.Running, keys: dict[str, str]) -> Iterator[interlace.Client]:
    with interlace.connect(server.url, keys["lab-a"]) as client:
        yield client


def local(repo_id: str, adapter: Path | None = None) -> Any:
    """A model with its weights here; an adapter's dropout is off, as it is on the server."""
    model = TransformersModel(repo_id, task="text-generation", peft=adapter and str(adapter), dispatch=True)
    model._module.eval()
    return model


def remote(repo_id: str, adapter: Path | str | None = None, **options: Any) -> Any:
    return TransformersModel(repo_id, task="text-generation", peft=adapter and str(adapter), **options)


def trace(model: Any, far: Any, **how: Any) -> dict[str, Any]:
    with model.trace(PROMPT, remote=far, **how):
        logits = model.lm_head.output.save()
    return {"logits": logits}


def failure(model: Any, **how: Any) -> str:
    with pytest.raises(RemoteError) as error:
        trace(model, True, **how)
    return str(error.value)


def inside(model: Any) -> Any:
    """The adapter's first layer in the model's second block."""
    block = model.transformer.h[1].attn.c_attn if hasattr(model._module, "transformer") else None
    return block if block is not None else model.model.layers[1].self_attn.q_proj


@pytest.mark.parametrize("repo_id", BASES)
def test_it_is_as_locally(repo_id: str, shelf: Path, stock_client: None) -> None:
    """Outputs, the adapter's own modules, edits of them, gradients, generation, and the model without it."""
    folder = shelf / f"{repo_id.rpartition('/')[2]}-1"

    def case(model: Any, far: Any) -> dict[str, Any]:
        with model.trace(PROMPT, remote=far):
            low = inside(model).lora_A.default.output.save()
            logits = model.lm_head.output.save()
        with model.trace(PROMPT, remote=far):
            inside(model).lora_B.default.output = inside(model).lora_B.default.output * 0
            without = model.lm_head.output.save()
        with model.trace(PROMPT, remote=far):
            hidden = inside(model).output
            hidden.requires_grad_()
            with model.lm_head.output.sum().backward():
                gradient = hidden.grad.save()
        with model.generate(PROMPT, max_new_tokens=4, do_sample=False, remote=far) as tracer:
            tokens = tracer.result.save()
        return {"low": low, "logits": logits, "without": without, "gradient": gradient, "tokens": tokens}

    here = case(local(repo_id, folder), False)
    assert here["low"].shape[-1] == 4
    assert_same(here, case(remote(repo_id, folder), True))
    assert_same(trace(local(repo_id), False), bare := trace(remote(repo_id), True))
    assert not torch.allclose(bare["logits"], here["logits"], atol=1e-3)


def test_an_artifact_of_ones_own(own: interlace.Client, shelf: Path, tmp_path: Path) -> None:
    folder = shelf / "gpt2-tiny-1"
    artifact = own.artifacts.upload(folder)
    assert (artifact.tenant, artifact.base and artifact.base.repo_id) == ("lab-a", tiny.GPT2)
    expected = trace(local(tiny.GPT2, folder), False)
    for ref in (artifact.ref, f"artifact:{artifact.id}"):
        model = remote(tiny.GPT2)
        model.peft = ref  # all that a stock client has to say
        assert_same(expected, trace(model, True))
    model = remote(tiny.GPT2)
    own.artifacts.apply(model, artifact)
    with own.installed(), model.trace(PROMPT, remote=True):
        low = inside(model).lora_A.default.output.save()
        logits = model.lm_head.output.save()
    assert_same(expected, {"logits": logits})
    assert low.shape[-1] == 4
    assert not model.dispatched
    fetched = own.artifacts.download(artifact, tmp_path / "back")
    assert {file.name: file.read_bytes() for file in fetched.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }
    own.artifacts.delete(artifact)
    assert "that is yours: it never was, or has been deleted" in failure(model)


def test_an_adapter_that_is_applied_where_the_weights_are(own: interlace.Client, shelf: Path) -> None:
    model, expected = local(tiny.GPT2), trace(local(tiny.GPT2, shelf / "gpt2-tiny-2"), False)
    own.artifacts.apply(model, own.artifacts.upload(shelf / "gpt2-tiny-2"))
    assert_same(expected, trace(model, False))
    assert_same(expected, trace(model, True))


def test_two_tenants_two_adapters_one_base_at_once(server: running.Running, keys: dict[str, str], shelf: Path) -> None:
    bare = trace(local(tiny.LLAMA), False)
    folders = {"lab-a": shelf / "llama-tiny-1", "lab-b": shelf / "llama-tiny-2"}
    expected = {tenant: trace(local(tiny.LLAMA, folder), False) for tenant, folder in folders.items()}
    refs = {}
    for tenant, folder in folders.items():
        with interlace.connect(server.url, keys[tenant]) as client:
            refs[tenant] = client.artifacts.upload(folder).ref
    together = threading.Barrier(6)

    def run(number: int) -> None:
        tenant = ("lab-a", "lab-b")[number % 2]
        model = remote(tiny.LLAMA)
        together.wait()
        for turn in range(4):
            model.peft = None if (turn + number // 2) % 3 == 2 else refs[tenant]
            backend = RemoteBackend(model.to_model_key(), api_key=keys[tenant], env=model._remoteable_get_env())
            with model.trace(PROMPT, backend=backend):
                logits = model.lm_head.output.save()
            assert_same(bare if model.peft is None else expected[tenant], {"logits": logits})

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(run, number) for number in range(6)]:
            done.result()
    assert not torch.allclose(expected["lab-a"]["logits"], expected["lab-b"]["logits"], atol=1e-3)
    assert_same(bare, trace(remote(tiny.LLAMA), True))
    model = remote(tiny.LLAMA)
    model.peft = refs["lab-b"]  # as lab-a
    theirs = failure(model)
    model.peft = never = f"artifact:{'0' * 16}"
    assert theirs.replace(refs["lab-b"][9:25], "ID") == failure(model).replace(never[9:], "ID")
    assert "that is yours" in theirs


def test_dropout_is_off(shelf: Path) -> None:
    folder = tiny_adapters.write(shelf / "dropout", tiny.GPT2, 3, dropout=0.5)
    assert_same(trace(local(tiny.GPT2, folder), False), trace(remote(tiny.GPT2, folder), True))


KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "DoRA": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "ranks by module": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 7}),
    "a whole module beside it": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embeddings": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens"]),
    "every linear layer": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_that_adds_to_modules(kind: str, shelf: Path) -> None:
    folder = tiny_adapters.save(shelf / kind.replace(" ", "-"), tiny.LLAMA, 5, KINDS[kind]())
    here = trace(local(tiny.LLAMA, folder), False)
    assert_same(here, trace(remote(tiny.LLAMA, folder), True))
    assert not torch.allclose(trace(local(tiny.LLAMA), False)["logits"], here["logits"], atol=1e-3)


def test_a_hub_adapter_that_the_operator_allows(home: Path, shelf: Path) -> None:
    for repo_id in ("allowed/adapter", "secret/adapter"):
        tiny.cache(home / "hf" / "hub", repo_id, shelf / "gpt2-tiny-1")
    expected = trace(local(tiny.GPT2, shelf / "gpt2-tiny-1"), False)
    assert_same(expected, trace(remote(tiny.GPT2, "allowed/adapter"), True))
    said = failure(remote(tiny.GPT2, "secret/adapter"))
    assert "this server fetches no such repository (allowed: allowed/*)" in said
    model = remote(tiny.GPT2)
    model.peft = "allowed/absent"
    assert "is not in the server's cache, and the hub did not give it" in failure(model)


def _unpaired(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(name for name in tensors if "lora_B" in name))


def _astray(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.transformer.h.9.attn.c_attn.lora_A.weight"] = torch.zeros(4, 64)


def _misshapen(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items() if "lora_A" in name})


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _renamed(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")


def _bomb(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{" * 1000)


def _large(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(bytes(1 + (1 << 20)))


def _link(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/hostname")


def _fifo(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")


def _config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: tiny_adapters.edit_config(folder, **fields)


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: tiny_adapters.edit_weights(folder, change)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another base": (_config(base_model_name_or_path="org/other"), "was made for org/other, and this model is"),
    "modules that are not there": (_config(target_modules=["q_proj"]), "does not fit this model (GPT2LMHeadModel)"),
    "a missing weight": (_weights(_unpaired), "lacks weights for this model (GPT2LMHeadModel): transformer.h."),
    "a weight too many": (_weights(_astray), "has weights without a place in this model (GPT2LMHeadModel)"),
    "another shape": (_weights(_misshapen), "does not fit this model (GPT2LMHeadModel): "),
    "another rank than it says": (_config(r=8), "does not fit this model (GPT2LMHeadModel): "),
    "a rank over the bound": (_config(r=4096), "is 4,096, over the limit of 64"),
    "a type that wraps": (_config(peft_type="PROMPT_TUNING"), "cannot be attached to its modules"),
    "a type that nobody knows": (_config(peft_type="EVIL"), "does not fit this model"),
    "a pickle": (_pickled, "there is no adapter_model.safetensors. Its adapter_model.bin is a pickle"),
    "a pickle by another name": (_renamed, "adapter_model.safetensors is no safetensors file"),
    "a header that is a bomb": (_bomb, "adapter_model.safetensors is no safetensors file"),
    "too many bytes": (_large, "`adapters.max_bytes`"),
    "a link out of the folder": (_link, "adapter_config.json is a link out of the folders that may be read"),
    "a pipe": (_fifo, "there is no adapter_config.json"),
    "no folder": (shutil.rmtree, "there is no adapter_config.json"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_one_that_cannot_be_had_is_refused_before_anything_runs(name: str, shelf: Path, tmp_path: Path) -> None:
    spoil, sentence = SPOILED[name]
    folder = shelf / "spoiled"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shelf / "gpt2-tiny-1", folder)
    spoil(folder)
    model = remote(tiny.GPT2)
    model.peft = str(folder)
    said = failure(model)
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize("path", ["/etc", "{shelf}/../hf", "{shelf}x", "/proc/self/cwd", "{shelf}/gpt2-tiny-1/../.."])
def test_a_path_that_is_not_allowed(path: str, shelf: Path) -> None:
    model = remote(tiny.GPT2)
    model.peft = path.format(shelf=shelf)
    assert "this server reads no such folder of its own" in failure(model)


def test_eager_attention_gives_its_weights(shelf: Path) -> None:
    """The hosted model runs with sdpa, which has none; with an adapter or without."""

    def case(model: Any, far: Any) -> dict[str, Any]:
        with model.trace(PROMPT, remote=far, output_attentions=True):
            weights = model.transformer.h[1].attn.output[1].save()
        return {"weights": weights}

    for adapter in (None, str(shelf / "gpt2-tiny-1")):
        eager = TransformersModel(
            tiny.GPT2, task="text-generation", peft=adapter, attn_implementation="eager", dispatch=True
        )
        here = case(eager, False)
        assert here["weights"].shape[1] == 4
        assert_same(here, case(remote(tiny.GPT2, adapter, attn_implementation="eager"), True))
    assert case(remote(tiny.GPT2), True)["weights"] is None


def test_an_attention_that_cannot_be_had_says_what_can() -> None:
    model = remote(tiny.GPT2)
    backend = RemoteBackend(model.to_model_key(), env={"attn_implementation": "flash_attention_2"})
    with pytest.raises(RemoteError) as error:
        with model.trace(PROMPT, backend=backend):
            logits = model.lm_head.output.save()
    said = str(error.value)
    assert "GPT2LMHeadModel cannot run with `attn_implementation='flash_attention_2'` on this server" in said
    assert "possible: eager, sdpa" in said
    assert "Traceback" not in said
