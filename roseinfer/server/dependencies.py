"""What routes ask for by type."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from roseinfer.inference_engine import GenerateParams, InferenceEngine


def _engine(request: Request) -> InferenceEngine:
    engine: InferenceEngine = request.app.state.engine
    return engine


def _defaults(request: Request) -> GenerateParams:
    defaults: GenerateParams = request.app.state.defaults
    return defaults


Engine = Annotated[InferenceEngine, Depends(_engine)]
Defaults = Annotated[GenerateParams, Depends(_defaults)]
