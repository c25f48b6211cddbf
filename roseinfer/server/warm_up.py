"""Builds the models of request bodies before they are needed: on the event loop each would hold it for some while.

They are not built when they are imported, because then a server would start later.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import get_type_hints

from pydantic import BaseModel
from starlette.routing import BaseRoute

from roseinfer.server.json_body import JSONBodyRoute
from roseinfer.server.translation import TranslatedRequest

DELAY_SECONDS = 1.0  # so that a first request that comes at once has the processor to itself


def warming_up(routes: Iterable[BaseRoute]) -> threading.Timer:
    """To be started when the server is ready, and cancelled when it ends."""
    return threading.Timer(DELAY_SECONDS, build, [body_models(routes)])


def body_models(routes: Iterable[BaseRoute]) -> Iterator[type[BaseModel]]:
    """Of these routes, and of what some of their bodies are translated into."""
    for route in routes:
        if isinstance(route, JSONBodyRoute):
            yield get_type_hints(route.endpoint)["body"]
    yield TranslatedRequest


def build(models: Iterable[type[BaseModel]]) -> None:
    for each in models:
        each.model_rebuild()
