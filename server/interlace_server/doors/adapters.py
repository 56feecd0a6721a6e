"""Whether a request may have the adapters that it names, as far as a manifest tells; the worker looks at the files."""

from typing import Any

from interlace.protocol.artifact import wanted
from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway
from interlace_state.adapters import check_base, check_policy, check_takes
from interlace_state.models import ModelCard


async def check_adapters(gateway: Gateway, env: dict[str, Any], card: ModelCard, caller: Caller) -> None:
    """Raises UnknownArtifact, also for another tenant's, or AdapterRefused."""
    for one in wanted(env):
        check_takes(one, card)
        if one.ref.place == "artifact":
            check_base(await gateway.state.artifacts.named(one.ref, caller.tenant), one, card)
        else:
            check_policy(one.ref, gateway.config.adapters)
