"""Where the blocks, the last norm and the head of a language model are, by the name of its kind."""

from dataclasses import dataclass

from interlace_server.page.tools.base import written
from interlace_state.models import ModelCard


@dataclass(frozen=True)
class Names:
    """Paths in nnsight's words, such as `model.transformer.h`."""

    blocks: str
    norm: str
    head: str
    embed: str


_GPT2 = Names("model.transformer.h", "model.transformer.ln_f", "model.lm_head", "model.transformer.wte")
_LLAMA = Names("model.model.layers", "model.model.norm", "model.lm_head", "model.model.embed_tokens")
_NEOX = Names("model.gpt_neox.layers", "model.gpt_neox.final_layer_norm", "model.lm_head", "model.gpt_neox.embed_in")
_MAMBA = Names("model.backbone.layers", "model.backbone.norm_f", "model.lm_head", "model.backbone.embeddings")
_BY_KIND = {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo2", "smollm3", "phi3"), _LLAMA),
    "gpt_neox": _NEOX,
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
}


def names_of(card: ModelCard) -> Names | None:
    return _BY_KIND.get(str(card.config.get("model_type", "")))


def opened(card: ModelCard, *imports: str) -> str:
    """The first lines of a script in stock nnsight; the address is put in by whoever shows it."""
    more = "".join(f"{one}\n" for one in imports)
    return (
        'import os\n\nos.environ["NDIF_HOST"] = URL  # and your key: os.environ["NDIF_API_KEY"]\n'
        'os.environ["HF_ENDPOINT"] = URL + "/hf"  # tokenizers and configurations of what is hosted there\n\n'
        f"{more}from nnsight import TransformersModel\n\n"
        f'model = TransformersModel({written(card.key.repo_id)}, task="text-generation"'
        + (f", revision={written(card.key.revision)}" if card.key.revision != "main" else "")
        + ")\n"
    )
