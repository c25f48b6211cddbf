"""Where models can run."""

from __future__ import annotations

from roseinfer.core.errors import DeviceError


def check_device(device: str) -> None:
    """Raises DeviceError for a device that cannot be served from; costs nothing, so it comes before a download."""
    if device == "cuda":
        raise DeviceError("device cuda: there is no CUDA backend yet; use --device cpu")
