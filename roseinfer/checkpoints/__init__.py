"""Model files: one module per container, found by file name.

A container module defines `matches(path) -> bool`, which looks at content and never raises `CheckpointError`, and
`open(path) -> Checkpoint`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from roseinfer.checkpoints._files import about
from roseinfer.checkpoints.checkpoint import Checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError

__all__ = ["Checkpoint", "Tensor", "open_checkpoint"]


def _containers() -> Iterator[ModuleType]:
    """One after the other: the modules behind the one that matches are never imported."""
    names = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    modules = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return (module for module in modules if hasattr(module, "matches"))


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a model file or directory by its content. Nothing is copied; no code in the file is run.

    Raises `CheckpointError`, naming the file and what is wrong in it, and `UnsupportedModelError` for a sound
    file in a format that is not supported.
    """
    path = Path(path)
    with about(path):
        path.stat()
        for container in _containers():
            if container.matches(path):
                checkpoint: Checkpoint = container.open(path)
                return checkpoint
        raise CheckpointError(_unknown(path))


def _unknown(path: Path) -> str:
    if path.is_dir():
        return "the directory holds no config.json"
    return "not a model file (known: GGUF, a safetensors file or directory with config.json, a torch file)"
