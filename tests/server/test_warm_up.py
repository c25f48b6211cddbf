"""Models of bodies that are built on a thread, beside requests that come meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from starlette.routing import Route

from roseinfer.server import warm_up
from roseinfer.server.routes import chat, completions, generate, messages, responses, tokenize
from roseinfer.server.schemas.chat import ChatRequest
from roseinfer.server.schemas.generate import GenerateRequest
from roseinfer.server.schemas.tokenize import DetokenizeRequest
from roseinfer.server.translation import TranslatedRequest


class Part(BaseModel):
    model_config = ConfigDict(defer_build=True)
    value: int


def deferred_model() -> type[BaseModel]:
    class Deferred(BaseModel):
        model_config = ConfigDict(defer_build=True)
        parts: list[Part]

    assert not Deferred.__pydantic_complete__
    return Deferred


def use_at(start: threading.Barrier, model: type[BaseModel]) -> dict[str, Any]:
    start.wait()
    return model.model_validate({"parts": [{"value": 1}]}).model_dump()


def test_the_models_are_those_of_all_routes_and_what_they_become() -> None:
    modules = (chat, completions, generate, messages, responses, tokenize)
    routes = [route for module in modules for route in module.router.routes]
    models = set(warm_up.body_models([*routes, Route("/other", lambda request: None)]))
    assert len(models) == 9
    assert {ChatRequest, GenerateRequest, DetokenizeRequest, TranslatedRequest} < models


def test_they_are_built_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "DELAY_SECONDS", 0.0)
    model = deferred_model()
    monkeypatch.setattr(warm_up, "body_models", lambda routes: iter([model]))
    timer = warm_up.warming_up([])
    assert not model.__pydantic_complete__
    timer.start()
    timer.join(10)
    assert model.__pydantic_complete__


def test_a_timer_that_is_cancelled_ends_at_once() -> None:
    timer = warm_up.warming_up([])
    timer.start()
    timer.cancel()
    start = time.monotonic()
    timer.join(10)
    assert not timer.is_alive()
    assert time.monotonic() - start < warm_up.DELAY_SECONDS / 2


def test_requests_may_use_a_model_while_it_is_built() -> None:
    for _ in range(20):
        model, start = deferred_model(), threading.Barrier(3)
        with ThreadPoolExecutor(2) as pool:
            uses = [pool.submit(use_at, start, model) for _ in range(2)]
            start.wait()
            warm_up.build([model])
        assert [each.result() for each in uses] == [{"parts": [{"value": 1}]}] * 2
