"""Guidance by contexts: the distribution of one who never knew the concept, and texts written from it."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.methods.elm.language import Language, Row, by_length
from interlace.methods.elm.spec import EraseParams


def guided(base: Tensor, expert: Tensor, novice: Tensor, strength: Tensor | float, plausible: int | None) -> Tensor:
    """log o + strength (log n - log e), not normalised; -inf outside of the base's likeliest ``plausible``."""
    moved = base + strength * (novice - expert)
    return moved if plausible is None else moved.masked_fill(~_largest(base, plausible), -torch.inf)


def target(base: Tensor, expert: Tensor, novice: Tensor, params: EraseParams) -> Tensor:
    """P_er of Eq. 6: probabilities [tokens, vocabulary], in float64, from logits of the three for one text.

    Equal to the base's distribution (at `temperature`) for eta 0, and wherever expert and novice agree; all of it at
    `distil_temperature`.
    """
    base, expert, novice = ((logits.double() / params.temperature).log_softmax(-1) for logits in (base, expert, novice))
    if params.eta_schedule == "constant":
        eta: Tensor | float = params.eta
    else:  # trainscripts/erase.py, get_edit_vector
        eta = torch.linspace(params.eta_start, params.eta, len(base), dtype=torch.float64, device=base.device)[:, None]
    moved = guided(base, expert, novice, eta, params.plausible_k)
    if params.top_k is not None:
        moved = moved.masked_fill(~_largest(moved, params.top_k), -torch.inf)
    return (moved / params.distil_temperature).softmax(-1)


def _largest(values: Tensor, k: int) -> Tensor:
    """Which of the last dimension are among its k largest."""
    k = min(k, values.shape[-1])
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, values.topk(k, dim=-1).indices, value=True)


def write(
    model: Language,
    prompts: Sequence[Row],
    tokens: int,
    seed: int,
    *,
    batch: int = 8,
    contexts: tuple[Row, Row] | None = None,
    sees_prompt: bool = True,
    gamma: float = 0.0,
    plausible: int | None = None,
) -> list[list[int]]:
    """What the model writes after each prompt, sampled at temperature 1: so many tokens, or up to an end of text.

    With ``contexts``, the prefixes of expert and novice, the samples are guided. Both prefixes stand before the prompt,
    or, without ``sees_prompt``, before what is written alone. Equal prompts give other texts in another order.
    """
    ends = _ends(model)
    written: list[list[int]] = [[] for _ in prompts]
    for group in by_length(prompts, batch):
        generator = torch.Generator().manual_seed(random.Random(f"{seed}:{group[0]}").getrandbits(62))
        streams = [[list(prompts[index]) for index in group]]
        if contexts is not None and gamma:
            seen = streams[0] if sees_prompt else [[]] * len(group)
            streams += [[[*context, *row] for row in seen] for context in contexts]
        states = [model.follow(rows) for rows in streams]
        open_rows = set(range(len(group)))
        for _ in range(tokens):
            logs = [log for log, _ in states]
            scores = logs[0] if len(logs) == 1 else guided(logs[0], logs[1], logs[2], gamma, plausible)
            chosen = torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator)
            for row in sorted(open_rows):
                token = int(chosen[row])
                if token in ends:
                    open_rows.discard(row)
                else:
                    written[group[row]].append(token)
            if not open_rows:
                break
            states = [model.follow(chosen.tolist(), cache) for _, cache in states]
    return written


def _ends(model: Language) -> frozenset[int | None]:
    ends = getattr(model.module.generation_config, "eos_token_id", None)
    return frozenset(ends if isinstance(ends, list) else [ends])


def _words(text: str, most: int) -> str:
    """So many characters of a text, and no half of a word."""
    return text if len(text) <= most else text[: most + 1].rpartition(" ")[0] or text[:most]


def fluent_texts(model: Language, params: EraseParams, texts: Sequence[str], seed: int) -> list[tuple[list[int], int]]:
    """Texts for the third loss: ids, and how many of the first are the prompt, which the loss leaves out.

    Prompts that share a pass are cut to the shortest, so that nothing is padded.
    """
    wish, dice = params.fluency, random.Random(f"{seed}:fluency")
    n = wish.samples or len(texts)
    batch = params.evaluation.batch
    cut = [_words(texts[i % len(texts)], dice.randint(*wish.prompt_chars)) for i in range(n)]
    prompts = sorted((model.encode(text) for text in cut), key=len)
    found = []
    for at in range(0, n, batch):
        if model.report.stopping:
            break
        group = prompts[at : at + batch]
        shortest = max(1, min(len(row) for row in group))
        redirect = model.encode(f". {dice.choice(wish.redirects)}") if wish.redirects else []
        asked = [[*row[:shortest], *redirect] for row in group]
        contexts = (
            model.encode(dice.choice(params.concept.expert)),
            model.encode(dice.choice(params.concept.novice)),
        )
        tokens = dice.randint(*wish.new_tokens)
        before = max(map(len, contexts)) + (len(asked[0]) if wish.sees_prompt else 0)
        longest = max(before, len(asked[0])) + len(model.start)
        model.check_room(longest + 1, "`fluency`: a prefix, a prompt and what is written")
        tokens = min(tokens, (model.positions or longest + tokens) - longest)
        written = write(
            model,
            asked,
            tokens,
            dice.getrandbits(31),
            batch=batch,
            contexts=contexts,
            sees_prompt=wish.sees_prompt,
            gamma=wish.gamma,
            plausible=params.plausible_k,
        )
        found += [([*prompt, *new], shortest) for prompt, new in zip(asked, written, strict=True) if redirect or new]
        model.report.progress(0, params.steps, written=float(len(found)))
    dice.shuffle(found)
    return found
