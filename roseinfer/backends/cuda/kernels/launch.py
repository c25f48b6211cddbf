"""The one way in which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton

Grid = tuple[int, ...]
Capability = tuple[int, int]  # what a CUDA device can do, as a version
Record = Callable[["Launch"], None]

HOPPER: Capability = (9, 0)


@dataclass(frozen=True)
class Launch:
    """A kernel as it would have been launched."""

    kernel: Any
    grid: Grid
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


_recorder: ContextVar[tuple[Record, Capability] | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(record: Record, capability: Capability = HOPPER) -> Iterator[None]:
    """Within, launches are given to `record`, as for a device of that capability, and not done; tensors may be on the
    meta device.
    """
    token = _recorder.set((record, capability))
    try:
        yield
    finally:
        _recorder.reset(token)


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors, one program after the other."""
    return bool(triton.knobs.runtime.interpret) and _recorder.get() is None


def capability_of(device: torch.device) -> Capability:
    """What kernels on this device may use; Hopper's where they are not compiled."""
    recorder = _recorder.get()
    if recorder is not None:
        return recorder[1]
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else HOPPER


def launch(kernel: Any, grid: Grid, *args: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any) -> None:
    """Puts a kernel on the current stream. `args` in the order of its parameters, then its constants by name.

    Multiplications and additions are never contracted: where a compiler would do so depends on the code around them,
    and an answer must not depend on which of two kernels computed it.
    """
    if 0 in grid:
        return
    recorder = _recorder.get()
    if recorder is not None:
        recorder[0](Launch(kernel, grid, args, constants, num_warps, num_stages))
        return
    kernel[grid](*args, **constants, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False)
