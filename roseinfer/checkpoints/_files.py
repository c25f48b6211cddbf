"""Reading files that may be damaged or hostile: bounded, mapped, and with errors that name the file."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from roseinfer.core.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]


@contextmanager
def about(what: object) -> Iterator[None]:
    """Puts `what` before the message of a `CheckpointError`; turns an `OSError` into one."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{what}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{what}: {error.strerror or error}") from error


def map_file(path: Path) -> Bytes:
    """The file's bytes, read-only, backed by its pages; unmapped when the last view is gone."""
    with _open_regular(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise CheckpointError("the file is empty") from error
    return np.frombuffer(mapped, np.uint8)


def mapping_of(data: Bytes) -> mmap.mmap | None:
    """The mapping that `data` is a view into, if it is one."""
    base: object = data
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def read_start(path: Path, size: int) -> bytes:
    """The first `size` bytes of a regular file, b"" for anything else."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(size)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    with _open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > max_bytes:
            raise CheckpointError(f"larger than {max_bytes} bytes")
        return file.read(num_bytes)


def _open_regular(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):  # asked before: opening a pipe would block
        raise CheckpointError("not a regular file")
    return path.open("rb")
