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
    memory: dict[str, int]  # bytes: weights, kv_cache (as it may grow), activations
    device: str  # "cpu", or the GPU's name
    isa: str  # of the CPU's kernels; empty on a GPU
    dtype: str  # as it was asked for
    weight_dtype: str  # as it was asked for
    kv_dtype: str
    fast: bool
    digest: str  # see `loader.model_digest`
