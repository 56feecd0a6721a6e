"""Who asks: an API key becomes a tenant. There are no keys yet, so everybody is the one local tenant."""

from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import HTTPConnection

LOCAL = "local"


class Identity(BaseModel):
    """What ``nnsight.whoami()`` shows."""

    email: str | None = None
    tags: list[str] = []


def tenant_of(_connection: HTTPConnection) -> str:
    """The tenant whose key the request carries (`ndif-api-key`)."""
    return LOCAL


def identity_of(_tenant: str) -> Identity:
    return Identity()


Tenant = Annotated[str, Depends(tenant_of)]
