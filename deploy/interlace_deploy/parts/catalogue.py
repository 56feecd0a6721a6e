"""Waiting for the models that we start, as our workers publish them."""

import asyncio
import re

from interlace_state.models import HostedModel, ModelState
from interlace_state.store import State

_LOOK = 0.05  # seconds between two looks
_PLACED = re.compile(r"placed (\S+)")


class Catalogue:
    """So many models of the catalogue as are configured: those that our workers say they have placed in it."""

    def __init__(self, state: State, count: int) -> None:
        self._state = state
        self._count = count
        self._placed: set[str] = set()

    def heed(self, line: str) -> bool:
        """Take a line of the workers; whether it was about a model's place. Why one has none is told at the end."""
        if match := _PLACED.fullmatch(line):
            self._placed.add(match[1])
        return match is not None or line.startswith("not placed ")

    async def settled(self) -> list[HostedModel]:
        """Ours, once each is ready or has failed."""
        while True:
            # What is there before they are placed is of a former run.
            if len(self._placed) >= self._count:
                models = [model for model in await self._state.models.all() if model.card.key.slug in self._placed]
                if all(model.state is not ModelState.DEPLOYING for model in models):
                    return models
            await asyncio.sleep(_LOOK)
