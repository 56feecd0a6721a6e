"""What an operator gives a tenant at run time. The API's routes and the pages call these."""

from pydantic import BaseModel, ConfigDict

from interlace_server.changes import note
from interlace_server.doors.auth import Caller
from interlace_server.gateway import Gateway
from interlace_state.settings.limits import LimitChanges, Weight


class TenantControl(BaseModel):
    """What a tenant is given over what the configuration says of everybody."""

    tenant: str
    #: Its share of the workers, beside those of others that wait.
    weight: float
    #: Set at run time, over those of the configuration.
    limits: LimitChanges


class TenantChanges(BaseModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    weight: Weight | None = None
    #: In place of all limits that were set at run time; `{}` takes them back.
    limits: LimitChanges | None = None


async def terms(gateway: Gateway, tenant: str) -> TenantControl:
    """A tenant's weight, 1 where nobody has set another, and the limits that were set at run time."""
    found = await gateway.state.control.terms(tenant)
    return TenantControl(tenant=tenant, weight=found.weight, limits=found.limits)


async def change(gateway: Gateway, caller: Caller, tenant: str, changes: TenantChanges) -> TenantControl:
    """Set a tenant's weight, its limits, or both, for jobs that start and requests that come from now on."""
    if changes.weight is not None:
        await gateway.state.control.set_weight(tenant, changes.weight)
    if changes.limits is not None:
        await gateway.state.control.set_limits(tenant, changes.limits)
    note(gateway, caller, "tenant changed", owner=tenant, **changes.model_dump(exclude_none=True))
    return await terms(gateway, tenant)
