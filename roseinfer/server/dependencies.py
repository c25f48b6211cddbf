"""What routes find in the app they belong to, and in what the middleware says of the caller."""

from __future__ import annotations

from starlette.requests import Request

from roseinfer.inference_engine import GenerateParams, InferenceEngine
from roseinfer.server.worker import LongWork


def engine_of(request: Request) -> InferenceEngine:
    engine: InferenceEngine = request.app.state.engine
    return engine


def tenant_of(request: Request) -> str:
    """Whose request it is; empty where callers are not told apart."""
    tenant: str = request.scope["state"].get("tenant", "")
    return tenant


def check_room(num_sequences: int, request: Request) -> None:
    """Raises OverloadedError or RateLimitedError, to be told before any work is done for the request."""
    engine_of(request).client.check_room(num_sequences, tenant_of(request))


def defaults_of(request: Request) -> GenerateParams:
    defaults: GenerateParams = request.app.state.defaults
    return defaults


def request_timeout_of(request: Request) -> float | None:
    """Seconds that a request may take, waiting included; None or 0 = any."""
    timeout: float | None = getattr(request.app.state, "request_timeout", None)
    return timeout


def long_work_of(request: Request) -> LongWork:
    """The app's, made for the first request that needs it."""
    state = request.app.state
    if not hasattr(state, "long_work"):
        state.long_work = LongWork()
    long_work: LongWork = state.long_work
    return long_work


def fingerprint_in(request: Request) -> str:
    fingerprint: str = request.app.state.fingerprint
    return fingerprint


def start_time_of(request: Request) -> int:
    """In seconds since 1970."""
    started_at: int = request.app.state.started_at
    return started_at
