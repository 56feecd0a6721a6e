"""What callers change, in the audit log; what they are refused is put there by `errors.note`."""

from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway
from interlace_state import log


def note(gateway: Gateway, caller: Caller, action: str, **fields: object) -> None:
    """Append a line on what a caller has changed; a log that cannot be written is told of in ours."""
    with log.instead_of(OSError, "audit_failed"):
        gateway.state.audit.write(action, tenant=caller.tenant, key=caller.key_id, **fields)
