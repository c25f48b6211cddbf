"""The limit on open files, which is one on connections."""

from __future__ import annotations

import contextlib
import resource

# asyncio accepts as many connections at a time as the backlog holds, before any of them can be refused; the rest is
# for the model, logs and pipes.
RESERVED_FILES = 2048 + 256


def make_room_for(max_connections: int) -> int:
    """Raises this process' soft limit as far as it is needed and allowed. Returns how many connections it is good for.

    They have at least half of it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_connections + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return max_connections
    return min(max_connections, max(soft // 2, soft - RESERVED_FILES))
