"""Lets in only callers that send a key; what may be asked without one is listed here, nothing else is."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode
from collections.abc import Awaitable, Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from roseinfer.server.errors import error_response

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
BROWSER_PATHS = frozenset({"/docs", "/openapi.json"})
TENANT_CHARS = 16


class ApiKeys:
    """Keys are compared as digests: equal length, constant time, and every key is looked at.

    Without keys everybody is let in.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._tenants = {_digest(key): _tenant_of(key) for key in keys}

    def tenant_of(self, scope: Scope) -> str | None:
        """Tells callers apart: some of a digest of the key, "" where none is needed, None for who is not let in."""
        is_open = not self._tenants or scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS
        return "" if is_open else self._find(_keys_in(scope))

    def _find(self, keys: Sequence[str]) -> str | None:
        digests = [_digest(key) for key in keys]
        found = [
            tenant for known, tenant in self._tenants.items() for each in digests if hmac.compare_digest(each, known)
        ]
        return found[0] if found else None


class AuthMiddleware:
    """Says in `scope["state"]["tenant"]` whose request it is."""

    def __init__(self, app: ASGIApp, api_keys: ApiKeys) -> None:
        self.app = app
        self._api_keys = api_keys

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        tenant = self._api_keys.tenant_of(scope)
        if tenant is not None:
            scope.setdefault("state", {})["tenant"] = tenant
            return self.app(scope, receive, send)
        if scope["type"] == "http":
            return _refusal(scope)(scope, receive, send)
        return send({"type": "websocket.close", "code": 1008})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _tenant_of(key: str) -> str:
    """The same in every process, and not the beginning of the digest that is compared."""
    return hashlib.sha256(b"tenant\0" + _digest(key)).hexdigest()[:TENANT_CHARS]


def _keys_in(scope: Scope) -> list[str]:
    """What OpenAI's clients send as a bearer token, Anthropic's in a header of its own and browsers as a password."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    keys = [token if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    if scheme.lower() == "basic" and _is_for_browsers(scope):
        keys.append(_password_in(token))
    # Header bytes reach us as Latin-1, whatever encoding the key has.
    return [key.strip().encode("latin-1").decode("utf-8", "replace") for key in keys]


def _password_in(token: str) -> str:
    """As Latin-1; the user's name is anything."""
    try:
        return b64decode(token.strip(), validate=True).decode("latin-1").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _is_for_browsers(scope: Scope) -> bool:
    """Where a browser may ask for the key. Nowhere else: it would send the key along with other sites' requests too."""
    return scope["path"] in BROWSER_PATHS and scope["method"] == "GET"


def _refusal(scope: Scope) -> Response:
    response = error_response(
        401,
        "send one of this server's API keys as `Authorization: Bearer KEY`",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
    if _is_for_browsers(scope):  # in a header of its own, as browsers do not look behind a comma
        response.raw_headers.append((b"www-authenticate", b'Basic realm="roseinfer", charset="UTF-8"'))
    return response
