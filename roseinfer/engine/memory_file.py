"""Memory that processes share, and that lives as long as one of them holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

_NO_OVERCOMMIT = "2"


def memory_file(name: str) -> IO[bytes] | None:
    """An empty one, to be handed on by its descriptor; None where the system has no such thing."""
    if not hasattr(os, "memfd_create"):
        return None
    return open(os.memfd_create(name), "r+b")


def large_memory_file(name: str) -> IO[bytes] | None:
    """One that may grow beyond what there is; None where the system would only find that out when it is written."""
    try:
        is_counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == _NO_OVERCOMMIT
    except OSError:
        is_counted = False
    return None if is_counted else memory_file(name)
