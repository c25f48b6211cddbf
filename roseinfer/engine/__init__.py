"""The step loop, its process and its client: the one place where control, compute and text meet."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["InferenceEngine"]


def __getattr__(name: str) -> Any:
    """`roseinfer.engine.InferenceEngine` is the library's door, which lies above this package: found when asked for."""
    if name == "InferenceEngine":
        return importlib.import_module("roseinfer.inference_engine").InferenceEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
