"""Processes of our own that run Python: a fresh interpreter with our import path."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from typing import Any

_PR_SET_PDEATHSIG = 1
_PATH_FIX = "import sys; sys.path[:1] == [''] and sys.path.pop(0); "


def start_python(code: str, pass_fds: Collection[int] = (), **options: Any) -> subprocess.Popen[bytes]:
    """Runs `code`. The process sees nothing of this one but its environment, its import path and `pass_fds`.

    Python looks for modules in the working directory first, whatever lies there; the process does not.
    """
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", _PATH_FIX + code], pass_fds=tuple(pass_fds), env=environment, **options
    )


def die_with_parent() -> None:
    """To be called by a process at its start: on Linux it ends when the thread that started it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def fill_standard_files() -> None:
    """Opens those of the descriptors 0 to 2 that this process was started without: nothing else may become them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
