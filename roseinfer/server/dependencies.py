"""What routes find in the app they belong to."""

from __future__ import annotations

from starlette.requests import Request

from roseinfer.inference_engine import GenerateParams, InferenceEngine


def engine_of(request: Request) -> InferenceEngine:
    engine: InferenceEngine = request.app.state.engine
    return engine


def defaults_of(request: Request) -> GenerateParams:
    defaults: GenerateParams = request.app.state.defaults
    return defaults


def fingerprint_in(request: Request) -> str:
    fingerprint: str = request.app.state.fingerprint
    return fingerprint


def start_time_of(request: Request) -> int:
    """In seconds since 1970."""
    started_at: int = request.app.state.started_at
    return started_at
