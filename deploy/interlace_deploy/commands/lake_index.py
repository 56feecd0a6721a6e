"""`interlace lake rebuild`: the index in Redis, made anew from the store, whether Interlace runs or not."""

import argparse

from interlace.protocol.lake import LakeCounts
from interlace_deploy.meeting import with_state
from interlace_state.config import Config
from interlace_state.store import State


def rebuild(arguments: argparse.Namespace) -> int:
    async def ask(state: State, _config: Config) -> LakeCounts:
        return await state.lake.rebuild()

    counts = with_state(arguments, ask)
    print(", ".join(f"{count} {name}" for name, count in counts.model_dump().items()))
    return 0
