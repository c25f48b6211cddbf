"""Which backend a device stands for. Nothing heavy is imported: it is decided before a model is fetched."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from roseinfer.core.errors import DeviceError

MODULES = ("torch", "triton")
DRIVER_FILES = tuple(map(Path, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))  # the last one: WSL
CUDA_LIBRARY = Path("lib", "libtorch_cuda.so")  # in torch's folder
_YES = ("1", "true", "yes", "on", "y")


def choose_backend(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """`native` or `cuda`, for auto, cpu or cuda. Auto is the GPU where nothing that it needs is known to be missing.

    With TRITON_INTERPRET=1 cuda runs on the CPU, for tests, and has to be asked for.
    Raises DeviceError for cuda, saying what is missing.
    """
    if device == "cpu":
        return "native"
    is_interpreted = environ.get("TRITON_INTERPRET", "").lower() in _YES
    if device == "auto":
        # What costs least is asked first: most machines without a GPU have no driver.
        missing = is_interpreted or _missing_gpu(environ) or _missing_modules() or _missing_cuda_build()
        return "native" if missing else "cuda"
    fault = _missing_modules()
    if not is_interpreted:
        fault = fault or _missing_gpu(environ) or _missing_cuda_build()
    if fault:
        raise DeviceError(f"device cuda: {fault}, or use --device cpu")
    return "cuda"


def has_driver() -> bool:
    """Whether the system has a driver for NVIDIA's GPUs; it may still have no GPU."""
    return any(file.exists() for file in DRIVER_FILES)


def _missing_gpu(environ: Mapping[str, str]) -> str:
    """What keeps programs from a GPU, and what to do about it; empty if nothing does."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.partition(",")[0].strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs; unset it"
    if not has_driver():
        return "there is no NVIDIA driver; install one"
    return ""


def _missing_modules() -> str:
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} not installed; pip install 'roseinfer[cuda]'"


def _missing_cuda_build() -> str:
    """A torch for CPUs finds no GPU; its version does not always tell."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or not (Path(spec.origin).parent / CUDA_LIBRARY).exists():
        return "the torch that is installed was built without CUDA; install another"
    return ""
