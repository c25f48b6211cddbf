"""The one model that there is, and the names that callers may know it by."""

from __future__ import annotations

from roseinfer.inference_engine import InferenceEngine
from roseinfer.server.errors import ModelNotFoundError


def check_model(engine: InferenceEngine, name: str | None) -> None:
    """Raises ModelNotFoundError for a name of some other model; no name is fine."""
    if name and name not in (engine.name, engine.info.name):
        raise ModelNotFoundError(f"there is no model {name[:256]!r} here, this server has {engine.name!r}")
