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
