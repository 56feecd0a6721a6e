"""A small adapter as files in memory, and a means to upload such."""

import json
from collections.abc import Mapping

import httpx
import safetensors.torch
import torch

WEIGHTS = safetensors.torch.save(
    {
        "base_model.model.a.lora_A.weight": torch.ones(2, 8),
        "base_model.model.a.lora_B.weight": torch.ones(8, 2),
    }
)
CONFIG = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a"]}).encode()
ADAPTER = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}


def upload(url: str, files: Mapping[str, bytes] = ADAPTER, *, key: str = "", **fields: str) -> httpx.Response:
    """Post an artifact."""
    parts = [("files", part) for part in files.items()]
    headers = {"ndif-api-key": key} if key else {}
    return httpx.post(f"{url}/v1/artifacts", data={"kind": "peft"} | fields, files=parts, headers=headers, timeout=60)
