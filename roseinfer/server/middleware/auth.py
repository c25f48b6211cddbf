"""Lets in only callers that send a key; what may be asked without one is listed here, nothing else is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from roseinfer.server.errors import error_response

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})


class AuthMiddleware:
    """Keys are compared as digests: equal length, constant time, and every key is looked at."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._is_known(_keys_in(scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _refusal()(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_known(self, keys: Sequence[str]) -> bool:
        digests = [_digest(key) for key in keys]
        return any([hmac.compare_digest(digest, known) for digest in digests for known in self._digests])  # noqa: C419


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _keys_in(scope: Scope) -> list[str]:
    """What OpenAI's clients send as a bearer token, and Anthropic's in a header of its own."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    keys = [token if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    # Header bytes reach us as Latin-1, whatever encoding the key has.
    return [key.strip().encode("latin-1").decode("utf-8", "replace") for key in keys]


def _refusal() -> ASGIApp:
    return error_response(
        401,
        "send one of this server's API keys as `Authorization: Bearer KEY`",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
