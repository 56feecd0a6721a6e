"""Small models of each family as local nnsight models, in this process."""

from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from nnsight.modeling.transformers import TransformersModel

from interlace.methods.shared.edits import Edit
from interlace.methods.shared.sites import Sites

_ASSETS = Path(__file__).parent / "assets"
FACTS_MAMBA = _ASSETS / "facts-mamba-mini"
FACTS_GPT = _ASSETS / "facts-gpt-mini"
FAMILIES = ("gpt2", "llama", "neox", "mamba")
PROMPT = "The capital of France is"


@cache
def of_family(name: str) -> Any:
    """One of FAMILIES: random weights, but for Mamba, which knows facts. Leave it as it is."""
    if name == "mamba":
        return facts(FACTS_MAMBA)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = getattr(tiny, f"_{name}")().eval()
    return TransformersModel(module, tokenizer=tiny.tokenizer(is_encoder=False))


@cache
def facts(folder: Path) -> Any:
    """One of the models that were trained on facts."""
    return TransformersModel(str(folder), task="text-generation", dispatch=True)


def logits(model: Any, prompt: str = PROMPT) -> torch.Tensor:
    """What a plain trace sees at the head: [1, tokens, vocabulary]."""
    with torch.no_grad():
        with model.trace(prompt):
            found = head(model).output.save()
    return found


def head(model: Any) -> Any:
    return model.embed_out if hasattr(model, "embed_out") else model.lm_head


def an_edit(model: Any, site: str, layer: int = 1, rank: int = 1, seed: int = 0) -> Edit:
    """A random edit of one projection."""
    generator = torch.Generator().manual_seed(seed)
    place = Sites.of(model).projection(site, layer)
    down, up = torch.randn(rank, place.d_in, generator=generator), torch.randn(place.d_out, rank, generator=generator)
    return Edit(down * 0.2, up * 0.4, site, layer)
