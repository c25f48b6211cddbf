"""The ASGI application: an engine, the routes found in `routes/`, and the middleware around them."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

import roseinfer
from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server import routes
from roseinfer.server.documentation import DocumentedApp
from roseinfer.server.errors import ERROR_RESPONSES, EXCEPTION_HANDLERS
from roseinfer.server.fingerprint import fingerprint_of
from roseinfer.server.metrics import ServerMetrics
from roseinfer.server.middleware.access_log import AccessLogMiddleware
from roseinfer.server.middleware.auth import AuthMiddleware
from roseinfer.server.middleware.body_limit import BodyLimitMiddleware
from roseinfer.server.middleware.crash_guard import CrashGuardMiddleware
from roseinfer.server.middleware.head_limit import HeadLimitMiddleware
from roseinfer.server.middleware.request_id import RequestIdMiddleware
from roseinfer.server.middleware.security_headers import SecurityHeadersMiddleware


def create_app(
    engine: InferenceEngine,
    *,
    defaults: GenerateParams | None = None,
    api_keys: Sequence[str] = (),
    metrics_prefix: str = "roseinfer",
) -> FastAPI:
    """An ASGI app around a running engine, which the caller closes.

    Args:
        defaults: for fields that a `/generate` body leaves out.
        api_keys: callers must send one of them, if there are any.
        metrics_prefix: roseinfer, vllm or both; what names in /metrics begin with.
    """
    metrics = ServerMetrics(engine.client.max_model_len)
    app = DocumentedApp(
        title="roseinfer",
        summary="An LLM inference server",
        version=roseinfer.__version__,
        middleware=_middleware(api_keys, metrics),
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
    app.state.fingerprint = fingerprint_of(engine)
    app.state.started_at = int(time.time())
    for router in _routers():
        app.include_router(router)
    return app


def _middleware(api_keys: Sequence[str], metrics: ServerMetrics) -> list[Middleware]:
    """Outermost first: every reply gets its id and headers, and no body is read for a caller without a key."""
    auth = [Middleware(AuthMiddleware, api_keys=api_keys)] if api_keys else []
    return [
        Middleware(AccessLogMiddleware, on_exchange=[metrics.on_exchange]),
        Middleware(RequestIdMiddleware),
        Middleware(SecurityHeadersMiddleware),
        Middleware(CrashGuardMiddleware),
        Middleware(HeadLimitMiddleware),
        *auth,
        Middleware(BodyLimitMiddleware),
    ]


def _routers() -> Iterator[APIRouter]:
    for module in pkgutil.iter_modules(routes.__path__, routes.__name__ + "."):
        yield importlib.import_module(module.name).router
