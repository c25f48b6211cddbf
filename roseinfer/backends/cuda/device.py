"""The GPU that a program runs on, or the CPU where Triton's interpreter stands in for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton

from roseinfer.core.errors import DeviceError, DeviceLostError
from roseinfer.core.machine import usable_memory

PASSING_FAULTS = ("out of memory", "invalid argument", "invalid configuration", "out of resources")
MIN_CAPABILITY = (8, 0)  # Ampere: the oldest with bfloat16, asynchronous copies, and products by Triton


def open_device() -> torch.device:
    """The current CUDA device. Raises DeviceError where there is none, or none that kernels can be compiled for."""
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        raise DeviceError(
            f"device cuda: torch finds no CUDA device (torch {torch.__version__} {built}); use --device cpu"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        has, least = (".".join(map(str, version)) for version in (capability, MIN_CAPABILITY))
        raise DeviceError(
            f"device cuda: {device_name(device)} has compute capability {has}, {least} is the least; use --device cpu"
        )
    return device


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter on the CPU"


def free_memory(device: torch.device) -> int:
    """Bytes that nobody holds now; other processes may take them at any time."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return usable_memory()


@contextmanager
def lost_device() -> Iterator[None]:
    """Raises DeviceLostError for errors of CUDA: after most of them it refuses all other calls of the process, too."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        is_of_cuda = isinstance(error, torch.AcceleratorError) or "Triton Error [CUDA]" in str(error)
        if is_of_cuda and not any(fault in str(error) for fault in PASSING_FAULTS):
            raise DeviceLostError(f"the CUDA device has failed: {error}") from error
        raise
