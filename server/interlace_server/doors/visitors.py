"""The pages' own door: which paths are pages, and the cookie by which a browser is known again.

A visitor's id opens pages and nothing else: `/v1` asks for a key.
"""

import hashlib
import hmac
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

COOKIE = "interlace_visit"
#: Of whoever has not signed in, or need not: what the token of a form is made of.
FORM_COOKIE = "interlace_form"
FOLDER = "/page/"
SIGN_IN = "/page/sign-in"
#: Shown to whoever has not signed in.
_OPEN = frozenset({SIGN_IN, "/page/signed-in"})
_OPEN_FOLDER = "/page/static/"
_ID = re.compile(r"[A-Za-z0-9_-]{43}")


def is_page(path: str) -> bool:
    return path == "/" or path.startswith(FOLDER)


def is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


def id_in(headers: Headers, cookie: str = COOKIE) -> str:
    """The id in a cookie; empty where there is none."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies[cookie].value if cookie in cookies else ""
    return found if _ID.fullmatch(found) else ""


def fresh_id() -> str:
    return secrets.token_urlsafe(32)


def form_token(cookie_id: str) -> str:
    """What a form of ours carries and one of another site cannot know."""
    return hmac.digest(cookie_id.encode(), b"interlace form", hashlib.sha256).hex()


def is_token(cookie_id: str, token: str) -> bool:
    return hmac.compare_digest(form_token(cookie_id).encode(), token.encode())


def to_sign_in(scope: Scope) -> Response:
    """The way of somebody who has to sign in first, and comes back then."""
    headers = Headers(scope=scope)
    if headers.get("hx-request"):  # a part of a page: the whole page goes there
        return Response(status_code=401, headers={"HX-Redirect": SIGN_IN})
    query = scope["query_string"].decode("latin-1")
    back = scope["path"] + (f"?{query}" if query else "")
    return RedirectResponse(f"{SIGN_IN}?back={quote(back, safe='')}" if scope["method"] == "GET" else SIGN_IN, 303)


def is_way_back(path: str) -> bool:
    """Whether somebody who has signed in may be sent there: to a page of ours and nowhere else."""
    bare = path.partition("?")[0]
    return is_page(bare) and not is_open(bare) and not re.search(r"[\\\x00-\x20\x7f]|//", bare)
