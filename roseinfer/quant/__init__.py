"""Weight formats: one file each, found by name. NumPy says here what a format means; kernels are checked against it.

A format module defines `BLOCK_SIZE` (values per block), `BLOCK_BYTES`, `dequantize(data) -> float32[...]` and
`quantize(values) -> uint8[...]`, both over whole blocks in one flat array.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from roseinfer.core.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    block_size: int
    block_bytes: int
    dequantize: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
    quantize: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint8]]

    @property
    def bits_per_weight(self) -> float:
        return self.block_bytes * 8 / self.block_size


@cache
def format_names() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


@cache
def get_format(name: str) -> Format:
    """The format called `name`; `UnsupportedModelError` lists the known ones."""
    if name not in format_names():
        raise UnsupportedModelError(f"weight format {name!r} is not supported (supported: {', '.join(format_names())})")
    module: Any = importlib.import_module(f"{__name__}.{name}")
    return Format(name, module.BLOCK_SIZE, module.BLOCK_BYTES, module.dequantize, module.quantize)
