"""Files of models: the one behind a name, and a tiny one that takes its place where only the server matters."""

from __future__ import annotations

from pathlib import Path


def file_of(model: str) -> Path:
    """Of a path or a catalogue name, fetched if it is not here yet."""
    from roseinfer.catalog import resolve_model
    from roseinfer.core.config import load_config

    return Path(resolve_model(model, load_config().models_dir))


def write_tiny_model(vocabulary: Path, path: Path) -> Path:
    """Random weights in two layers, with the vocabulary and the chat template of a GGUF file."""
    from gguf import GGUFReader

    from benchmarks.random_model import Shape, write_model

    shape = Shape(layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, context=512)
    write_model(path, GGUFReader(vocabulary), shape, "q8_0", "q8_0", seed=0)
    return path
