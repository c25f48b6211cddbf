"""How CPython is set up for a process that serves: its defaults are for programs that compute by themselves."""

from __future__ import annotations

import ctypes
import gc
import sys

# After a step the engine's thread wants the GIL back. Where another thread runs Python for long (templates, Python
# tokenizers, large bodies), CPython's 5 ms would be added to every step.
SWITCH_SECONDS = 0.0005

# Young objects that make the collector look at them. A request leaves a dozen behind, 700 are alive at once easily.
YOUNG_OBJECTS = 5000


def settle_interpreter() -> None:
    """To be called when everything is loaded: what is there now is never looked at by the garbage collector again.

    A full collection of it would hold up all requests for some forty milliseconds.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    sys.setswitchinterval(SWITCH_SECONDS)


def return_freed_memory() -> None:
    """glibc keeps what is freed for later, and loading a model frees much."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
