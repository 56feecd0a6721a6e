"""What is refused with 405 says all that would be allowed."""

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send


class SharedPath(APIRoute):
    """A route whose path others have, too, for other methods: Starlette's `Allow` names only those of the first."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            methods = scope["app"].openapi()["paths"][self.path_format]
            raise HTTPException(405, headers={"Allow": ", ".join(method.upper() for method in methods)})
        await super().handle(scope, receive, send)
