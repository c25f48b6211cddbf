"""What receiving a model file must not do: run code, start processes, open sockets, write, or read anything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

_FORBIDDEN = (
    "subprocess.",
    "socket.",
    "ctypes.",
    "shutil.",
    "tempfile.",
    "pty.",
    "urllib.",
    "pickle.",
    "marshal.",
)
_FORBIDDEN += (
    "cpython.",
    "builtins.input",
    "builtins.breakpoint",
    "sqlite3.",
    "webbrowser.",
    "sys.addaudithook",
    "syslog.",
    "fcntl.",
)
_OS_READS = ("os.listdir", "os.scandir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TEMPLATES = ("<template>", "<unknown>")  # what Jinja names the code it makes, for templates and their tracebacks


class SideEffect(BaseException):
    """Not an Exception, so that nobody takes it for an error of the file."""


class Guard:
    """An audit hook, which can never be taken away; it looks only inside `watching`."""

    def __init__(self, folder: Path, *listed: Path) -> None:
        """Files are read in `folder` only; `listed` are looked through: the package finds its parts by file name."""
        self._folder = f"{folder}{os.sep}"
        self._listed = tuple(f"{path}{os.sep}" for path in (folder, *listed))
        self._is_watching = False
        self._found: str | None = None
        sys.addaudithook(self._see)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Raises SideEffect, at the end too if somebody has swallowed it."""
        self._found, self._is_watching = None, True
        try:
            yield
        finally:
            self._is_watching = False
        if self._found:
            raise SideEffect(self._found)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_watching and self._is_forbidden(event, arguments):
            self._found = f"{event} {arguments!r:.300}"
            raise SideEffect(self._found)

    def _is_forbidden(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = arguments
            return bool(flags & _WRITES) or not _is_inside(path, (self._folder,))
        if event == "import":
            return True  # all that is needed has been imported
        if event == "exec":
            return not isinstance(arguments[0], CodeType) or arguments[0].co_filename not in _TEMPLATES
        if event == "code.__new__":
            return arguments[1] not in _TEMPLATES
        if event.startswith("os."):
            return event not in _OS_READS or not _is_inside(arguments[0], self._listed)
        return event.startswith(_FORBIDDEN)


def _is_inside(path: Any, folders: tuple[str, ...]) -> bool:
    return isinstance(path, str | os.PathLike) and (os.path.abspath(path) + os.sep).startswith(folders)
