"""Memory that processes share, and that lives as long as one of them holds it."""

from __future__ import annotations

import os
from typing import IO


def memory_file(name: str) -> IO[bytes] | None:
    """An empty one, to be handed on by its descriptor; None where the system has no such thing."""
    if not hasattr(os, "memfd_create"):
        return None
    return open(os.memfd_create(name), "r+b")
