"""Whether a request may have the artifacts that it names, as far as a manifest tells; the worker looks at the files."""

from collections.abc import Mapping, Sequence
from typing import Any

from interlace.protocol.artifact import AdapterRef, edits_of, read_of, wanted
from interlace.protocol.errors import InvalidRequest
from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway
from interlace_state.adapters import check_base, check_edit, check_policy, check_takes
from interlace_state.models import ModelCard


async def check_adapters(gateway: Gateway, env: dict[str, Any], card: ModelCard, caller: Caller) -> None:
    """Raises UnknownArtifact, also for another tenant's, or AdapterRefused."""
    for one in wanted(env):
        check_takes(one, card)
        if one.ref.place == "artifact":
            check_base(await gateway.state.artifacts.named(one.ref, caller.tenant, caller.key_id), one, card)
        else:
            check_policy(one.ref, gateway.config.adapters)
    await check_edits(gateway, edits_of(env), card, caller)
    for ref in read_of(env):
        await gateway.state.artifacts.named(ref, caller.tenant, caller.key_id)


async def check_edits(gateway: Gateway, edits: Sequence[AdapterRef], card: ModelCard, caller: Caller) -> None:
    """Raises UnknownArtifact, AdapterRefused."""
    for ref in edits:
        check_edit(await gateway.state.artifacts.named(ref, caller.tenant, caller.key_id), ref, card)


async def check_opened(gateway: Gateway, opens: Mapping[str, Sequence[str]], caller: Caller) -> None:
    """Raises UnknownArtifact, or InvalidRequest for one of another kind than those beside its name."""
    for text, kinds in opens.items():
        artifact = await gateway.state.artifacts.named(AdapterRef.parse(text, "params"), caller.tenant, caller.key_id)
        if artifact.kind not in kinds:
            raise InvalidRequest(
                f"`params` names {text[:96]}, which is of the kind {artifact.kind}; expected {' or '.join(kinds)}."
            )
