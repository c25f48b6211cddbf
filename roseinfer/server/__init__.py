"""The HTTP server: validates bodies, asks the engine, writes replies. Knows text and JSON, no tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roseinfer.server.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    """FastAPI is imported when an app is asked for: the runner binds its port and loads its model meanwhile."""
    if name == "create_app":
        from roseinfer.server.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
