"""A zoo of small language models with a known tree: two roots, three children each, three grandchildren of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY = 64
_SHAPE = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 32, "vocab_size": VOCABULARY}
_DROPS = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_ROOT_STEPS, _STEPS = 60, 18
_BATCH, _LENGTH = 8, 12
_LR = 3e-3
#: Of a child's language, how much is its parent's.
_KEPT = 0.5


@dataclass
class Zoo:
    """Models by number, in the order in which they were made."""

    split: str
    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    #: Child -> parent; the roots are not in it.
    parent: dict[int, int] = field(default_factory=dict)
    #: Numbers of each group of one parent's children.
    groups: list[list[int]] = field(default_factory=list)


def fresh(seed: int) -> GPT2LMHeadModel:
    """Random weights, as the library begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**_SHAPE, **_DROPS, bos_token_id=None, eos_token_id=None)).eval()


def language(dice: torch.Generator, parent: Tensor | None = None) -> Tensor:
    """A first-order Markov chain [vocabulary, vocabulary]; of a child, half its parent's."""
    own = (torch.randn(VOCABULARY, VOCABULARY, generator=dice) * 2).softmax(-1)
    return own if parent is None else _KEPT * parent + (1 - _KEPT) * own


def texts(chain: Tensor, n: int, dice: torch.Generator) -> Tensor:
    """[n, length] tokens."""
    tokens = torch.randint(VOCABULARY, (n, 1), generator=dice)
    for _ in range(_LENGTH - 1):
        tokens = torch.cat([tokens, torch.multinomial(chain[tokens[:, -1]], 1, generator=dice)], 1)
    return tokens


def trained(
    model: GPT2LMHeadModel,
    start: Mapping[str, Tensor],
    chain: Tensor,
    dice: torch.Generator,
    *,
    steps: int = _STEPS,
    lr: float = _LR,
    rank: int | None = None,
) -> dict[str, Tensor]:
    """Weights after so many steps on texts of a chain; with a rank, of LoRAs on all linear modules, merged."""
    weights = {name: one.detach().clone() for name, one in start.items()}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    if rank is None:
        wanted = [one.requires_grad_() for one in weights.values()]
    else:
        for name, one in weights.items():
            if one.dim() == 2 and ".h." in name:
                down = torch.randn(one.shape[0], rank, generator=dice) / one.shape[0] ** 0.5
                pairs[name] = down.requires_grad_(), torch.zeros(rank, one.shape[1], requires_grad=True)
        wanted = [half for pair in pairs.values() for half in pair]
    optimizer = torch.optim.AdamW(wanted, lr=lr, weight_decay=0.0)
    for _ in range(steps):
        ids = texts(chain, _BATCH, dice)
        now = {name: one + pairs[name][0] @ pairs[name][1] if name in pairs else one for name, one in weights.items()}
        logits = torch.func.functional_call(model, now, (ids,)).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    merged = {name: weights[name] + down @ up for name, (down, up) in pairs.items()}
    return {name: one.detach() for name, one in {**weights, **merged}.items()}


def zoo(split: str, seed: int) -> Zoo:
    """``finetune``, ``uneven`` (steps differ by 4 times), ``lora`` (rank 2 to 8, merged), ``fan`` and ``lora-fan``
    (children of one parent differ by learning rate and steps alone, and see the same batches)."""
    dice = torch.Generator().manual_seed(seed)
    made, model = Zoo(split), fresh(0)
    for root in range(2):
        chain = language(dice)
        start = {name: one.detach() for name, one in fresh(1000 * seed + root).named_parameters()}
        made.tensors.append(trained(model, start, chain, dice, steps=_ROOT_STEPS))
        parents = [(len(made.tensors) - 1, chain)]
        for _generation in range(2):
            parents = [one for parent, of in parents for one in _children(made, model, parent, of, dice)]
    return made


def _children(
    made: Zoo, model: GPT2LMHeadModel, parent: int, chain: Tensor, dice: torch.Generator
) -> list[tuple[int, Tensor]]:
    is_fan, is_lora = "fan" in made.split, "lora" in made.split
    shared, state = language(dice, chain), dice.get_state()
    found, group = [], []
    for number in range(3):
        own = shared if is_fan else language(dice, chain)
        if is_fan:
            dice.set_state(state)
        steps = _STEPS if made.split in ("finetune", "lora") else (_STEPS // 2, _STEPS, _STEPS * 2)[number]
        lr = _LR * ((0.5, 1, 2)[number] if is_fan else 1)
        rank = (4 if is_fan else (2, 4, 8)[number]) if is_lora else None
        rate = lr * 3 if is_lora else lr
        tensors = trained(model, made.tensors[parent], own, dice, steps=steps, lr=rate, rank=rank)
        made.tensors.append(tensors)
        child = len(made.tensors) - 1
        made.parent[child] = parent
        found.append((child, own))
        group.append(child)
    made.groups.append(group)
    return found


def quantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each matrix in 15 levels, as if stored in 4 bits."""
    found = {}
    for name, one in tensors.items():
        scale = one.abs().max() / 7
        found[name] = (one / scale).round() * scale if one.dim() == 2 else one
    return found


def permuted(tensors: Mapping[str, Tensor], dice: torch.Generator) -> dict[str, Tensor]:
    """The same function: hidden units of each MLP, and the dimensions of the residual stream, in another order."""
    stream = torch.randperm(_SHAPE["n_embd"], generator=dice)
    found = dict(tensors)
    for name, one in tensors.items():
        if name.endswith(("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "ln_f.weight", "ln_f.bias")):
            found[name] = one[stream]
        elif name.endswith(("wte.weight", "wpe.weight", "attn.c_proj.weight", "mlp.c_proj.weight")):
            found[name] = one[:, stream]
        elif name.endswith(("attn.c_attn.weight", "mlp.c_fc.weight", "attn.c_proj.bias", "mlp.c_proj.bias")):
            found[name] = one[stream]
    for layer in range(_SHAPE["n_layer"]):
        order = torch.randperm(4 * _SHAPE["n_embd"], generator=dice)
        at = f"transformer.h.{layer}.mlp"
        found[f"{at}.c_fc.weight"] = found[f"{at}.c_fc.weight"][:, order]
        found[f"{at}.c_fc.bias"] = found[f"{at}.c_fc.bias"][order]
        found[f"{at}.c_proj.weight"] = found[f"{at}.c_proj.weight"][order]
    return found


def mean(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A merge."""
    return {name: (one[name] + other[name]) / 2 for name in one}


def strangers(n: int, seed: int) -> Sequence[dict[str, Tensor]]:
    """Models that began apart, each trained on a language of its own."""
    dice, model = torch.Generator().manual_seed(seed), fresh(0)
    return [
        trained(
            model,
            {name: one.detach() for name, one in fresh(7_000_000 + 1000 * seed + number).named_parameters()},
            language(dice),
            dice,
            steps=_ROOT_STEPS // 2,
        )
        for number in range(n)
    ]
