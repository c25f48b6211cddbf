"""Builds the models of request bodies before they are needed: on the event loop each would hold it for some while.

They are not built when they are imported, because then a server would start later.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import get_type_hints

import pydantic
from pydantic import BaseModel
from starlette.routing import BaseRoute

from roseinfer.server.json_body import JSONBodyRoute
from roseinfer.server.translation import TranslatedRequest

DELAY_SECONDS = 1.0  # so that a first request that comes at once has the processor to itself
# Before this one, a model that two threads begin to use at the same time may be half built for one of them.
FIRST_SAFE_PYDANTIC = (2, 14)


def warming_up(routes: Iterable[BaseRoute]) -> threading.Timer:
    """To be started when the server is ready, and cancelled when it ends. Does nothing with an older Pydantic."""
    return threading.Timer(DELAY_SECONDS, build, [body_models(routes) if is_safe(pydantic.VERSION) else ()])


def is_safe(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) >= FIRST_SAFE_PYDANTIC


def body_models(routes: Iterable[BaseRoute]) -> Iterator[type[BaseModel]]:
    """Of these routes, and of what some of their bodies are translated into."""
    for route in routes:
        if isinstance(route, JSONBodyRoute):
            yield get_type_hints(route.endpoint)["body"]
    yield TranslatedRequest


def build(models: Iterable[type[BaseModel]]) -> None:
    for each in models:
        each.model_rebuild()
