"""What a loaded model is, for people and for the doors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelInfo:
    """Plain data, which crosses the border to another process."""

    name: str
    file: str
    container: str
    architecture: str  # as the file says; models/ may run it as another's twin
    formats: dict[str, tuple[int, int]]  # weight format → (tensors, bytes in the file)
    num_parameters: int
    vocab_size: int
    max_model_len: int
    eos_ids: tuple[int, ...]
    memory: dict[str, int]  # bytes: weights, kv_cache, activations
    isa: str
    dtype: str  # as it was asked for
    kv_dtype: str
    digest: str  # see `loader.model_digest`
