"""Waiting for the models that we start, in a catalogue that may hold those of others, or of a former run."""

import asyncio

from interlace_state.config import Config
from interlace_state.models import HostedModel, ModelState
from interlace_state.store import State

_LOOK = 0.2  # seconds between two looks


class Catalogue:
    """The configured models, as the workers publish them."""

    def __init__(self, config: Config, state: State) -> None:
        self._config = config
        self._state = state
        self._others: frozenset[str] = frozenset()

    async def forget_all(self) -> None:
        """Empty a catalogue that only we use: what is in it died with the run that wrote it."""
        for model in await self._state.models.all():
            for replica in model.replicas:
                await self._state.models.leave(model.card.key, replica.id)
            await self._state.models.withdraw(model.card.key)

    async def set_others_apart(self) -> None:
        """Remember what a shared catalogue holds already; a former failure of a model of ours is forgotten."""
        from interlace_workers import sources

        ours = {sources.name_of(model) for model in self._config.models}
        others = set()
        for model in await self._state.models.all():
            if model.card.key.repo_id not in ours:
                others.add(model.card.key.slug)
            elif model.state is ModelState.FAILED:
                await self._state.models.withdraw(model.card.key)
        self._others = frozenset(others)

    async def settled(self) -> list[HostedModel]:
        """Ours, once each is ready or has failed."""
        while True:
            models = await self._ours()
            if len(models) >= self._expected and all(model.state is not ModelState.DEPLOYING for model in models):
                return models
            await asyncio.sleep(_LOOK)

    async def none_left(self) -> list[HostedModel]:
        """The failures, where no model of ours can be had; else nothing."""
        failed = [model for model in await self._ours() if model.state is ModelState.FAILED]
        return failed if len(failed) >= self._expected else []

    @property
    def _expected(self) -> int:
        """How many different models are configured."""
        return len({(model.source, model.repo_id, model.revision, model.task) for model in self._config.models})

    async def _ours(self) -> list[HostedModel]:
        return [model for model in await self._state.models.all() if model.card.key.slug not in self._others]
