"""Knockouts, many a forward: each row of a batch has its own window of layers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interlace.methods.base import Metric, Report, Table
from interlace.methods.flow.spec import FlowParams, FlowResult
from interlace.methods.shared import capture, intervals
from interlace.methods.shared.capture import Patch
from interlace.methods.shared.prompts import Prompt, check_lengths, first_token
from interlace.methods.shared.sites import Place, Sites, evaluating
from interlace.protocol.errors import InvalidRequest


def run(model: Any, params: FlowParams, report: Report) -> FlowResult:
    """See `FlowParams`. Raises InvalidRequest for a mode that the model has not, and where no prompt is left."""
    with evaluating(model) as module, torch.no_grad():
        return _Knockout(module, model.tokenizer, params, report).run()


class _Knockout:
    def __init__(self, module: nn.Module, tokenizer: Any, params: FlowParams, report: Report) -> None:
        self._module = module
        self._tokenizer = tokenizer
        self._params = params
        self._report = report
        self._sites = Sites.of(module)
        self._device = next(module.parameters()).device
        self._forwards = 0
        recurrent = "mixer_in.x" in self._sites.names
        self._mode = params.mode if params.mode != "auto" else ("mean_ablate_x" if recurrent else "attention")
        if (self._mode == "mean_ablate_x") != recurrent:
            raise InvalidRequest(f"`mode: {self._mode}` cannot be had: this model is a {self._sites.model_type}.")
        self._places: dict[int, Place] = {}
        if recurrent:
            self._places = {layer: self._sites.place("mixer_in.x", layer) for layer in range(self._sites.n_layers)}

    def run(self) -> FlowResult:
        params = self._params
        prompts = [Prompt.of(self._tokenizer, params.prefix + one.text, one.subject) for one in params.prompts]
        check_lengths(self._module, prompts)
        means = self._means(prompts) if self._mode == "mean_ablate_x" else {}
        changes: dict[str, list[list[float]]] = {block: [] for block in params.block}
        known, warnings = 0, []
        for number, (asked, prompt) in enumerate(zip(params.prompts, prompts, strict=True)):
            if self._report.stopping:
                warnings.append(f"Cancelled after {number} of {len(prompts)} prompts.")
                break
            with capture.captured(self._places) as clean:
                logits = self._forward(torch.tensor([prompt.ids]))[0]
            choice = int(logits.argmax())
            answer = choice if asked.answer is None else first_token(self._tokenizer, asked.answer)
            known += choice == answer
            if choice == answer or not params.filter_known:
                whole = float(logits.double().softmax(-1)[answer])
                for block in params.block:
                    if cut := prompt.positions(block):
                        left = self._left(prompt, cut, answer, clean, means)
                        changes[block].append([(one - whole) / whole for one in left])
            self._report.progress(number + 1, len(prompts))
        if not any(changes.values()):
            raise InvalidRequest("No prompt is left: in none is the answer the model's first choice.")
        if known < len(prompts) and params.filter_known:
            warnings.append(f"{len(prompts) - known} of {len(prompts)} prompts are left out: not the first choice.")
        table, metrics = _averaged(changes, self._sites.n_layers)
        value, interval = intervals.share(known, len(prompts))
        metrics.append(Metric(name="known", value=value, unit="fraction", n=len(prompts), ci95=interval))
        return FlowResult(metrics=tuple(metrics), tables=(table,), warnings=tuple(warnings), forwards=self._forwards)

    def _left(
        self, prompt: Prompt, cut: Sequence[int], answer: int, clean: dict[int, Tensor], means: dict[int, Tensor]
    ) -> list[float]:
        """The answer's probability with the way cut around each layer."""
        found: list[float] = []
        middles = list(range(self._sites.n_layers))
        for start in range(0, len(middles), self._params.batch):
            some = middles[start : start + self._params.batch]
            ids = torch.tensor([prompt.ids]).expand(len(some), -1)
            if self._mode == "attention":
                with self._unattended(some, cut, len(prompt.ids)):
                    logits = self._forward(ids)
            else:
                with capture.patched(self._ablations(some, cut, prompt, clean, means)):
                    logits = self._forward(ids)
            found += logits.double().softmax(-1)[:, answer].tolist()
        return found

    def _rows(self, layer: int, middles: Sequence[int]) -> list[int]:
        """The rows in whose window a layer is."""
        window = self._params.window
        return [row for row, middle in enumerate(middles) if 0 <= layer - middle + window // 2 < window]

    @contextmanager
    def _unattended(self, middles: Sequence[int], cut: Sequence[int], length: int) -> Iterator[None]:
        """The last token attends to none of ``cut``, in each row's window."""

        def hook(rows: list[int]) -> Any:
            def before(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                states = args[0] if args else kwargs["hidden_states"]
                allowed = _allowed(kwargs.get("attention_mask"), len(middles), length, states.device)
                last = allowed[rows, :, -1]
                last[..., list(cut)] = False
                allowed[rows, :, -1] = last
                mask = torch.zeros(allowed.shape, dtype=states.dtype, device=states.device)
                return args, {**kwargs, "attention_mask": mask.masked_fill(~allowed, torch.finfo(states.dtype).min)}

            return before

        with ExitStack() as hooks:
            for layer in range(self._sites.n_layers):
                if rows := self._rows(layer, middles):
                    handle = self._sites.attention(layer).register_forward_pre_hook(hook(rows), with_kwargs=True)
                    hooks.callback(handle.remove)
            yield

    def _ablations(
        self,
        middles: Sequence[int],
        cut: Sequence[int],
        prompt: Prompt,
        clean: dict[int, Tensor],
        means: dict[int, Tensor],
    ) -> list[Patch]:
        others = [at for at in range(len(prompt.ids) - 1) if at not in cut] if self._params.restore else []
        patches = []
        for layer, place in self._places.items():
            for row in self._rows(layer, middles):
                positions = torch.tensor([*cut, *others])
                values = torch.cat([means[layer].expand(len(cut), -1), clean[layer][0, others]])
                patches.append(Patch(place, torch.full_like(positions, row), positions, values))
        return patches

    def _means(self, prompts: Sequence[Prompt]) -> dict[int, Tensor]:
        """Of what goes into each block's convolution: [width] by layer."""
        rows: list[Sequence[int]] = [one.ids for one in prompts]
        if self._params.texts is not None:
            texts = self._report.texts(self._params.texts)
            rows = [self._tokenizer(text)["input_ids"][: self._params.longest] for text in texts]
        totals = {layer: torch.zeros((), dtype=torch.float64) for layer in self._places}
        seen = 0
        for _, ids in capture.by_length([row for row in rows if row], self._params.batch):
            with capture.captured(self._places) as states:
                self._forward(ids)
            totals = {layer: total + states[layer].double().sum((0, 1)) for layer, total in totals.items()}
            seen += ids.numel()
        if not seen:
            raise InvalidRequest("`texts` has no token.")
        return {layer: total / seen for layer, total in totals.items()}

    def _forward(self, ids: Tensor) -> Tensor:
        """Logits of the last token, [rows, vocabulary]."""
        self._forwards += 1
        self._report.count(forwards=1, tokens=ids.numel())
        return capture.last_logits(self._module, ids.to(self._device))


def _allowed(given: Any, rows: int, length: int, device: torch.device) -> Tensor:
    """Which token may see which, [rows, 1, queries, keys]: as the model would have it, else causally."""
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None].repeat(rows, 1, 1, 1)
    if isinstance(given, Tensor) and given.dim() == 4:
        allowed &= given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
    elif given is not None:
        raise InvalidRequest("This model's attention takes no mask of queries by keys: load it with eager or sdpa.")
    return allowed


def _averaged(changes: dict[str, list[list[float]]], n_layers: int) -> tuple[Table, list[Metric]]:
    rows: list[tuple[Any, ...]] = []
    metrics = []
    for block, lines in changes.items():
        if not lines:
            continue
        mine: list[tuple[Any, ...]] = []
        for layer in range(n_layers):
            middle, interval = intervals.mean([line[layer] for line in lines])
            mine.append((block, layer, middle, *(interval or (None, None)), len(lines)))
        rows += mine
        worst = min(mine, key=lambda row: row[2])
        metrics.append(
            Metric(
                name="largest_loss",
                value=worst[2],
                unit="fraction",
                n=worst[5],
                ci95=None if worst[3] is None else (worst[3], worst[4]),
                split=f"{block}, layer {worst[1]}",
            )
        )
    return Table(name="flow", columns=("block", "layer", "change", "low", "high", "n"), rows=tuple(rows)), metrics
