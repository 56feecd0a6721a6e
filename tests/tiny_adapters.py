"""Tiny PEFT adapters of the tiny models, with seeded random weights, as `save_pretrained` writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

TARGETS = {"gpt2-tiny": ["c_attn", "c_proj"], "llama-tiny": ["q_proj", "v_proj", "down_proj"]}


def write(folder: Path, repo_id: str, seed: int, *, rank: int = 4, dropout: float = 0.0, **changes: Any) -> Path:
    """A LoRA of a tiny model in its cache, whose every weight is random: with it the model says something else."""
    targets = TARGETS[repo_id.rpartition("/")[2]]
    shape = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": dropout, "target_modules": targets} | changes
    return save(folder, repo_id, seed, peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **shape))


def save(folder: Path, repo_id: str, seed: int, config: peft.PeftConfig) -> Path:
    """An adapter of any kind; what its kind starts with as nothing is random, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(repo_id), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    """Change the adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the adapter's tensors."""
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    change(tensors)
    file.write_bytes(safetensors.torch.save(tensors))
