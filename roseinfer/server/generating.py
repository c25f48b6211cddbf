"""Which routes ask the engine for room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_MARK = "generates_tokens"


def generates(endpoint: Endpoint) -> Endpoint:
    """Marks a route's function: its requests take places in the engine, and are refused where there is none."""
    setattr(endpoint, _MARK, True)
    return endpoint


def generating_routes(routers: Iterable[APIRouter]) -> dict[tuple[str, str], APIRoute]:
    """Those that are marked, by method and path."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    marked = [route for route in routes if hasattr(route.endpoint, _MARK)]
    return {(method, route.path): route for route in marked for method in route.methods or ()}
