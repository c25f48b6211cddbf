"""Work that is short mostly and long sometimes: long work must not hold the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Tokenising, or rendering, up to here takes no longer than the event loop may be held.
MAX_INLINE_CHARS = 2048


async def run_sized(num_chars: int, work: Callable[[], T]) -> T:
    """The result of `work` on so many characters, here if they are few and in another thread if not."""
    return work() if num_chars <= MAX_INLINE_CHARS else await asyncio.to_thread(work)
