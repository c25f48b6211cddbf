"""Refuses requests that the engine has no room for when only their head is known, without the app.

A server that is asked ten times too much spends its time on refusals: this one costs a third of what the app takes to
come to the same conclusion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from fastapi.routing import APIRoute
from starlette.types import Scope

from roseinfer.core.errors import OverloadedError, RoseinferError
from roseinfer.engine.client import EngineClient
from roseinfer.server.errors import ErrorResponse, response_of
from roseinfer.server.http_refusal import reply_bytes
from roseinfer.server.middleware.access_log import Exchange, Listener
from roseinfer.server.middleware.auth import ApiKeys
from roseinfer.server.middleware.request_id import request_id_of
from roseinfer.server.middleware.security_headers import Header


class Refusal:
    """The answer to one request. Whoever has been given it has to call `end`, whether it was sent or not."""

    def __init__(self, exchange: Exchange, response: ErrorResponse, listeners: Sequence[Listener]) -> None:
        self._exchange = exchange
        self._response = response
        self._listeners = listeners

    def reply(self, first_headers: Sequence[Header], *, is_last: bool) -> bytes:
        """All of it; `is_last` says that the connection ends behind it."""
        headers = [*first_headers, (b"connection", b"close")] if is_last else first_headers
        response = self._response
        self.note(response.status_code, bytes(response.body))
        return reply_bytes(response, self._exchange.scope["state"]["request_id"], headers)

    def note(self, status: int, body: bytes) -> None:
        """What is sent in answer to the request, by whomever."""
        self._exchange.take({"type": "http.response.start", "status": status})
        self._exchange.take({"type": "http.response.body", "body": body})

    def end(self) -> None:
        """The log and the metrics are told."""
        self._exchange.end(has_failed=False)
        for listener in self._listeners:
            listener(self._exchange)


class Gate:
    """Stands before the app, which would say the same of whatever is refused here, unless its body is wrong.

    Nothing is parsed for a request that there is no room for: under full load a wrong body gets 503 too, and its 400
    only when there is room.

    Args:
        client: is asked for room.
        routes: by method and path, whose requests need room.
        api_keys: who is let in. A request without one is none of the gate's business: the app says so.
        checks: of a request's head, as the app makes them. One that fails one is none either.
        listeners: are told of each refusal, as of any other exchange.
    """

    def __init__(
        self,
        client: EngineClient,
        routes: Mapping[tuple[str, str], APIRoute],
        api_keys: ApiKeys,
        checks: Sequence[Callable[[Scope], bool]],
        listeners: Sequence[Listener],
    ) -> None:
        self._client = client
        self._routes = routes
        self._api_keys = api_keys
        self._checks = checks
        self._listeners = listeners

    def refusal(self, scope: Scope) -> Refusal | None:
        """None for a request that the app is to see."""
        if not self._client.admission.may_refuse:
            return None
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None or not all(check(scope) for check in self._checks):
            return None
        tenant = self._api_keys.tenant_of(scope)
        error = None if tenant is None else self._overload(tenant)
        return None if error is None else self._refuse(scope, route, error)

    def _overload(self, tenant: str) -> OverloadedError | None:
        try:
            self._client.check_room(1, tenant)
        except OverloadedError as error:
            return error.with_traceback(None)  # or it would live until garbage is collected, with all that it led to
        except RoseinferError:
            pass  # the engine is gone: the app knows what that means
        return None

    def _refuse(self, scope: Scope, route: APIRoute, error: OverloadedError) -> Refusal:
        exchange = Exchange(scope, time.perf_counter())
        scope["route"] = route
        scope["state"]["request_id"] = request_id_of(scope)
        response = response_of(error)
        response.suit(scope)
        return Refusal(exchange, response, self._listeners)
