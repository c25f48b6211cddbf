"""Triton's interpreter, made fit for a test suite."""

from __future__ import annotations

from typing import Any


class _Kept:
    def restore(self) -> None:
        """Nothing."""


def keep_language_patched() -> None:
    """Triton's interpreter replaces the language's functions around each kernel and each function that it calls, which
    takes most of its time. In a process that only interprets they may as well stay replaced.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    patched: dict[frozenset[int], Any] = {}

    def patch_once(fn: Any) -> _Kept:
        languages = frozenset(
            id(value) for value in fn.__globals__.values() if value in (interpreter.tl, interpreter.tl.core)
        )
        if languages not in patched:
            patched[languages] = patch(fn)
        return _Kept()

    interpreter._patch_lang = patch_once
