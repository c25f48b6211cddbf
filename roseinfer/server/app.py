"""The ASGI application: an engine, the routes found in `routes/`, and the middleware around them."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

import roseinfer
from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server import routes
from roseinfer.server.documentation import DocumentedApp
from roseinfer.server.errors import ERROR_RESPONSES, EXCEPTION_HANDLERS
from roseinfer.server.fingerprint import fingerprint_of
from roseinfer.server.gate import Gate
from roseinfer.server.generating import generating_routes
from roseinfer.server.host_names import ANY
from roseinfer.server.metrics import ServerMetrics
from roseinfer.server.middleware.access_log import AccessLogMiddleware, Listener, write
from roseinfer.server.middleware.auth import ApiKeys, AuthMiddleware
from roseinfer.server.middleware.body_limit import BODY_SECONDS, MAX_BODY_BYTES, BodyLimitMiddleware
from roseinfer.server.middleware.crash_guard import CrashGuardMiddleware
from roseinfer.server.middleware.draining import DrainingMiddleware
from roseinfer.server.middleware.head_limit import HeadLimitMiddleware, has_small_head
from roseinfer.server.middleware.host import HostCheck, HostMiddleware
from roseinfer.server.middleware.request_id import RequestIdMiddleware
from roseinfer.server.middleware.security_headers import SecurityHeadersMiddleware


def create_app(
    engine: InferenceEngine,
    *,
    defaults: GenerateParams | None = None,
    api_keys: Sequence[str] = (),
    metrics_prefix: str = "roseinfer",
    allowed_hosts: Sequence[str] = (ANY,),
    max_body_bytes: int = MAX_BODY_BYTES,
    body_seconds: float = BODY_SECONDS,
    request_timeout: float | None = None,
) -> FastAPI:
    """An ASGI app around a running engine, which the caller closes.

    Args:
        defaults: for fields that a `/generate` body leaves out.
        api_keys: callers must send one of them, if there are any.
        metrics_prefix: roseinfer, vllm or both; what names in /metrics begin with.
        allowed_hosts: names that the server answers to, see `host_names.py:HostNames`; `*` = any.
        max_body_bytes: of a request's body.
        body_seconds: in which it must have arrived.
        request_timeout: seconds that a request may take from then on; None = any.
    """
    metrics = ServerMetrics(engine.client.max_model_len)
    listeners = [metrics.on_exchange, write]
    keys = ApiKeys(api_keys)
    host_checks = [] if ANY in allowed_hosts else [HostCheck(allowed_hosts)]
    routers = _routers()
    app = DocumentedApp(
        title="roseinfer",
        summary="An LLM inference server",
        version=roseinfer.__version__,
        middleware=_middleware(keys, listeners, host_checks, max_body_bytes, body_seconds),
        exception_handlers=EXCEPTION_HANDLERS,
        responses=ERROR_RESPONSES,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.engine = engine
    app.state.defaults = defaults or GenerateParams()
    app.state.metrics = engine.observer = metrics
    app.state.metrics_prefix = metrics_prefix
    app.state.is_draining = False
    app.state.request_timeout = request_timeout
    app.state.fingerprint = fingerprint_of(engine)
    app.state.started_at = int(time.time())
    app.state.gate = Gate(engine.client, generating_routes(routers), keys, [has_small_head, *host_checks], listeners)
    for router in routers:
        app.include_router(router)
    return app


def _middleware(
    keys: ApiKeys,
    listeners: Sequence[Listener],
    host_checks: Iterable[HostCheck],
    max_body_bytes: int,
    body_seconds: float,
) -> list[Middleware]:
    """Outermost first: every reply gets its id and headers, and no body is read for a caller without a key."""
    return [
        Middleware(AccessLogMiddleware, listeners=listeners),
        Middleware(RequestIdMiddleware),
        Middleware(SecurityHeadersMiddleware),
        Middleware(CrashGuardMiddleware),
        Middleware(HeadLimitMiddleware),
        *[Middleware(HostMiddleware, check=check) for check in host_checks],
        Middleware(DrainingMiddleware),
        Middleware(AuthMiddleware, api_keys=keys),
        Middleware(BodyLimitMiddleware, max_bytes=max_body_bytes, seconds=body_seconds),
    ]


def _routers() -> list[APIRouter]:
    modules = pkgutil.iter_modules(routes.__path__, routes.__name__ + ".")
    return [importlib.import_module(module.name).router for module in modules]
