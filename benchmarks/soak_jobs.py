"""The jobs that `soak.py` sends: each kind once, and how it should end. Imports nnsight: call `stock_client` first."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import service

from interlace import Client

_PROMPT = [[1, 2, 3, 4, 5, 6, 7, 8]]


@contextmanager
def _expected(words: str) -> Iterator[None]:
    """The job fails, and what its user reads has these words."""
    from nnsight.intervention.backends.remote import RemoteError

    try:
        yield
    except RemoteError as error:
        if words in str(error):
            return
        raise
    raise AssertionError(f"it should have failed: {words}")


class Sender:
    """A stock client with a model object of its own, and what sends each kind of job with it."""

    def __init__(self, url: str) -> None:
        from nnsight import TransformersModel

        self._url = url
        self._model = TransformersModel(service.GPT2, task="text-generation")

    def kinds(self) -> Sequence[Callable[[], None]]:
        """Every kind; one raises if its job did not end as it should."""
        good = [self.read, self.edit, self.generate, self.gradient, self.session, self.large]
        return [*good, self.failing, self.killed, self.cancelled]

    def read(self) -> None:
        model = self._model
        with model.trace(_PROMPT, remote=True):
            hidden = model.transformer.h[3].output.save()
        assert hidden.shape[-2:] == (8, 128), hidden.shape

    def edit(self) -> None:
        model = self._model
        with model.trace(_PROMPT, remote=True):
            model.transformer.h[2].output[:] = 1.5
            seen = model.transformer.h[2].output.detach().mean().save()
        assert seen.item() == 1.5, seen

    def generate(self) -> None:
        model = self._model
        with model.generate(_PROMPT, remote=True, max_new_tokens=5, min_new_tokens=5, do_sample=False) as tracer:
            ids = tracer.result.save()
        assert ids.shape[-1] == 13, ids.shape

    def gradient(self) -> None:
        model = self._model
        with model.trace(_PROMPT, remote=True):
            hidden = model.transformer.h[1].output
            loss = model.lm_head.output[0, -1, 42]
            with loss.backward():
                gradient = hidden.grad.save()
        assert gradient.abs().sum() > 0

    def session(self) -> None:
        model = self._model
        with model.session(remote=True):
            with model.trace(_PROMPT):
                clean = model.transformer.h[1].output[:, -1]
            with model.trace([[9, 10, 11, 12]]):
                model.transformer.h[1].output[:, -1] = clean
                patched = model.lm_head.output[:, -1].save()
        assert patched.shape[-1] == 1000, patched.shape

    def large(self) -> None:
        """2 MiB that no compression shrinks: it goes by URL."""
        import torch

        model = self._model
        with model.trace(_PROMPT, remote=True):
            values = torch.randn(1 << 19).save()
        assert values.shape == (1 << 19,), values.shape

    def failing(self) -> None:
        with _expected("no such thing"):
            self._failing()

    def _failing(self) -> None:
        model = self._model
        with model.trace(_PROMPT, remote=True):
            hidden = model.transformer.h[0].output.save()
            raise ValueError("no such thing")

    def killed(self) -> None:
        with _expected("exit code 3"):
            self._killed()

    def _killed(self) -> None:
        model = self._model
        with model.trace(_PROMPT, remote=True):
            hidden = model.transformer.h[0].output.save()
            os._exit(3)

    def cancelled(self) -> None:
        """Cancelled while it waits, or while it runs."""
        model = self._model
        with model.trace(_PROMPT, remote=True, blocking=False) as tracer:
            time.sleep(30)
            logits = model.lm_head.output.save()
        time.sleep(random.random())
        with Client(self._url) as client:
            view = client.cancel(tracer.backend.job_id)
        assert view.state == "cancelled", view
