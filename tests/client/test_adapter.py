"""An adapter's configuration and tensors are looked at without loading them; names of adapters are parsed as data."""

import io
import json
from typing import Any

import pytest
import safetensors.torch
import torch

from interlace.protocol.adapter import Facts, check_diffusers, check_peft, fits
from interlace.protocol.artifact import AdapterRef, wanted
from interlace.protocol.errors import InvalidArtifact, InvalidRequest
from interlace.protocol.safetensors import Header, read_header

TENSORS = {
    "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(4, 64),
    "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": torch.zeros(192, 4),
}
CONFIG = {"peft_type": "LORA", "r": 4, "target_modules": ["c_attn"], "base_model_name_or_path": "lab/base"}


def header(tensors: dict[str, torch.Tensor]) -> Header:
    data = safetensors.torch.save(tensors)
    return read_header(io.BytesIO(data), len(data), "adapter_model.safetensors")


def checked(config: Any = CONFIG, tensors: dict[str, torch.Tensor] = TENSORS) -> Facts:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    return check_peft(data, header(tensors), most_rank=64)


def test_what_an_adapter_says_of_itself() -> None:
    assert checked() == Facts(1024, "lab/base", {"peft_type": "LORA", "rank": 4})
    assert checked(CONFIG | {"base_model_name_or_path": "/home/me/model"}).base is None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (b"\x80\x04N.", "no JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b" " * (1 << 20) + b"{}", "at most 1,048,576"),
        ({}, "`peft_type`"),
        (CONFIG | {"peft_type": ["LORA"]}, "`peft_type`"),
        (CONFIG | {"peft_type": "PREFIX_TUNING"}, "cannot be attached"),
        (CONFIG | {"r": 65}, "`r` in adapter_config.json is 65, over the limit of 64"),
        (CONFIG | {"r": 10**12}, "`adapters.max_rank` in the configuration"),
        (CONFIG | {"r": -1}, "whole number from 1 on"),
        (CONFIG | {"r": True}, "whole number from 1 on"),
        (CONFIG | {"rank_pattern": {"c_attn": 4096}}, "`rank_pattern.c_attn` in adapter_config.json is 4,096"),
        (CONFIG | {"rank_pattern": [1]}, "`rank_pattern`"),
        (CONFIG | {"megatron_config": {}}, "`megatron_config`"),
    ],
)
def test_a_configuration_that_is_refused(config: Any, sentence: str) -> None:
    with pytest.raises(InvalidArtifact, match=sentence):
        checked(config)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({}, "holds no tensor"),
        ({"transformer.h.0.lora_A.weight": torch.zeros(4, 64)}, "no tensor of a PEFT adapter"),
        ({"base_model.model.a.lora_A.weight": torch.zeros(65, 8)}, "has the rank 65, over the limit of 64"),
        ({"base_model.model.a.lora_A.weight": torch.zeros(4, 8, dtype=torch.int32)}, "of the type I32"),
        ({"base_model.model.a.lora_A.weight": torch.zeros(0, 8)}, "has no numbers"),
    ],
)
def test_tensors_that_are_refused(tensors: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(InvalidArtifact, match=sentence):
        checked(tensors=tensors)


def test_a_lora_of_diffusers() -> None:
    good = {"unet.a.lora_A.weight": torch.zeros(4, 8), "unet.a.lora_B.weight": torch.zeros(8, 4)}
    assert check_diffusers(header(good)).facts == {"components": ["unet"]}
    with pytest.raises(InvalidArtifact, match=r"unet\.conv\.weight in .* is no tensor of a LoRA"):
        check_diffusers(header(good | {"unet.conv.weight": torch.zeros(2)}))


def test_repo_ids_that_mean_one_model() -> None:
    assert fits("gpt2", "openai-community/gpt2")
    assert fits("Org/Name", "org/name")
    assert not fits("other/name", "org/name")
    assert not fits("gpt2-xl", "openai-community/gpt2")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("artifact:0123456789abcdef", "artifact"),
        ("artifact:0123456789abcdef@" + "a" * 64, "artifact"),
        ("/srv/adapters/one", "folder"),
        ("org/name", "hub"),
        ("name", "hub"),
    ],
)
def test_names_of_adapters(text: str, place: str) -> None:
    assert AdapterRef.parse(text, "env.peft").place == place


@pytest.mark.parametrize(
    "text",
    ["", "artifact:", "artifact:../../x", "artifact:0123456789abcdef@xyz", "artifact:0123456789ABCDEF", "./x", "../x",
     "~/x", "a/b/c", "a\0b", "org/..", "x" * 300, 7, ["org/name"], {"a": 1}, "http://host/x", "org/na me"],
)  # fmt: skip
def test_what_names_no_adapter(text: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"`env\.peft` is"):
        AdapterRef.parse(text, "env.peft")


def test_what_an_env_asks_for() -> None:
    assert wanted({"attn_implementation": "sdpa"}) == wanted({"peft": None, "lora": None}) == ()
    (one,) = wanted({"peft": "org/name"})
    assert (one.kind, one.ref.text, one.weight) == ("peft", "org/name", 1.0)
    first, second = wanted({"lora": [{"adapter": "org/a"}, {"adapter": "org/b", "weight": -0.5}]})
    assert (first.kind, first.weight, second.ref.text, second.weight) == ("diffusers-lora", 1.0, "org/b", -0.5)


@pytest.mark.parametrize(
    ("loras", "sentence"),
    [
        ("org/a", "must be a list"),
        ([{"adapter": "org/a"}] * 9, "up to 8"),
        (["org/a"], r"`env\.lora\[0\]`"),
        ([{"adapter": "org/a", "scale": 1}], r"`env\.lora\[0\]`"),
        ([{"adapter": "org/a"}, {"adapter": "./b"}], r"`env\.lora\[1\]\.adapter`"),
        ([{"adapter": "org/a", "weight": "1"}], r"`env\.lora\[0\]\.weight`"),
        ([{"adapter": "org/a", "weight": True}], r"`env\.lora\[0\]\.weight`"),
        ([{"adapter": "org/a", "weight": 1e9}], r"`env\.lora\[0\]\.weight`"),
        ([{"adapter": "org/a", "weight": float("nan")}], r"`env\.lora\[0\]\.weight`"),
    ],
)
def test_loras_that_are_refused(loras: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        wanted({"lora": loras})
