"""`/page/admin/tenants`: everybody who may ask: their weights and limits, and their keys."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Path, Request
from pydantic import ValidationError
from starlette.responses import Response

from interlace.protocol.errors import InvalidRequest
from interlace.protocol.ids import NAME
from interlace_server import tenancy
from interlace_server.changes import note
from interlace_server.doors.auth import LOCAL, Caller, TheCaller
from interlace_server.errors import describe
from interlace_server.gateway import Gateway, TheGateway
from interlace_server.page.frame import PageRoute, done, page, saying
from interlace_server.routes.admin import an_admin
from interlace_server.usage import usage_of
from interlace_state.settings.limits import LEAST_WEIGHT, MOST_WEIGHT, LimitChanges
from interlace_state.tenants import ApiKey, KeyEnded

router = APIRouter(
    prefix="/page/admin/tenants", route_class=PageRoute, include_in_schema=False, dependencies=[Depends(an_admin)]
)

_HERE = "/page/admin/tenants"
_OVERLAP = 3600.0  # seconds
_Tenant = Annotated[str, Path(pattern=f"^{NAME}$")]
_Text = Annotated[str, Form(max_length=256)]
saying(
    changed="The tenant's terms are these from now on.",
    revoked="The key is revoked: nobody gets in with it any more.",
)


@router.get("")
async def tenants(request: Request, caller: TheCaller, gateway: TheGateway) -> Response:
    keys = await gateway.state.tenants.all()
    names = sorted({*await gateway.state.control.tenants(), *(key.tenant for key in keys)} or {LOCAL})
    terms = [await tenancy.terms(gateway, name) for name in names]
    count = {name: sum(key.tenant == name for key in keys) for name in names}
    return page(request, "admin_tenants.html", terms=terms, count=count, tab="tenants")


@router.get("/{tenant}")
async def tenant(request: Request, tenant: _Tenant, caller: TheCaller, gateway: TheGateway) -> Response:
    keys = [key for key in await gateway.state.tenants.all() if key.tenant == tenant]
    role = "admin" if any(key.role == "admin" for key in keys) else "user"
    values: dict[str, Any] = {
        "terms": await tenancy.terms(gateway, tenant),
        "configured": gateway.config.limits_of(tenant, role).model_dump(),
        "fields": list(LimitChanges.model_fields),
        "least_weight": LEAST_WEIGHT,
        "most_weight": MOST_WEIGHT,
        "keys": keys,
        "usage": await usage_of(gateway, tenant),
    }
    return page(request, "admin_tenant.html", tenant=tenant, tab="tenants", **values)


@router.post("/{tenant}")
async def change(request: Request, tenant: _Tenant, caller: TheCaller, gateway: TheGateway) -> Response:
    """A weight, and limits: a field that is left empty is as configured."""
    form = {name: str(value).strip() for name, value in (await request.form()).items()}
    limits = {name: form[name] for name in LimitChanges.model_fields if form.get(name)}
    said: dict[str, Any] = {"limits": limits} | ({"weight": form["weight"]} if form.get("weight") else {})
    try:
        changes = tenancy.TenantChanges.model_validate(said)
    except ValidationError as error:
        raise InvalidRequest(describe(error, "The form", tenancy.TenantChanges)) from None
    await tenancy.change(gateway, caller, tenant, changes)
    return done(f"{_HERE}/{tenant}", "changed")


@router.post("")
async def mint(
    request: Request,
    caller: TheCaller,
    gateway: TheGateway,
    tenant: _Text = "",
    role: _Text = "user",
    models: Annotated[str, Form(max_length=4096)] = "",
) -> Response:
    """A new key, which is shown once."""
    if not await gateway.state.tenants.any():
        raise InvalidRequest("The first key closes this server for all without one, this page too: make it with "
                             "`interlace keys create --tenant NAME --role admin`.")  # fmt: skip
    try:
        only = models.split() or None
        key, secret = await gateway.state.tenants.mint(tenant.strip(), role, only)  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidRequest(describe(error, "The form", ApiKey)) from None
    _note(gateway, caller, "key made", key)
    return page(request, "new_key.html", key=key, secret=secret, back=f"{_HERE}/{key.tenant}", old=None)


@router.post("/keys/rotate")
async def rotate(request: Request, caller: TheCaller, gateway: TheGateway, key: _Text = "") -> Response:
    """A new key in place of one that works for an hour more."""
    try:
        made = await gateway.state.tenants.rotate(key, _OVERLAP)
    except KeyEnded as error:
        raise InvalidRequest(str(error)) from None
    if made is None:
        raise InvalidRequest(f"There is no key {key[:20]!r}.")
    _note(gateway, caller, "key rotated", made[0])
    back = f"{_HERE}/{made[0].tenant}"
    return page(request, "new_key.html", key=made[0], secret=made[1], back=back, old=key)


@router.post("/keys/revoke")
async def revoke(caller: TheCaller, gateway: TheGateway, key: _Text = "") -> Response:
    """End a key at once; the last one of an admin stays, as nobody could make another here."""
    keys = await gateway.state.tenants.all()
    found = next((one for one in keys if one.id == key), None)
    if found is None:
        raise InvalidRequest(f"There is no key {key[:20]!r}.")
    if found.role == "admin" and not any(one.role == "admin" and one.is_live() for one in keys if one is not found):
        raise InvalidRequest("This is the last key of an admin: end it with `interlace keys revoke`.")
    await gateway.state.tenants.revoke(key)
    _note(gateway, caller, "key revoked", found)
    return done(f"{_HERE}/{found.tenant}", "revoked")


def _note(gateway: Gateway, caller: Caller, action: str, key: ApiKey) -> None:
    note(gateway, caller, action, of=key.id, owner=key.tenant, role=key.role)
