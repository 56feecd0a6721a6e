"""A caller as whoever looks into the lake."""

from interlace_server.doors.auth import Caller
from interlace_state.lake.graph import Viewer
from interlace_state.store import State


async def viewer_of(state: State, caller: Caller) -> Viewer:
    keys = None if caller.key_id is None else await state.tenants.former(caller.key_id)
    return Viewer(tenant=caller.tenant, keys=keys, admin=caller.role == "admin", models=caller.models)
