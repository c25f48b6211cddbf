"""A bar on the terminal while a model loads, if that takes long enough to be noticed."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from typing_extensions import Self

PATIENCE_SECONDS = 0.5


class LoadingBar:
    """Call it with (bytes loaded, bytes in all); small models and pipes never see it."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def __call__(self, loaded_bytes: int, total_bytes: int) -> None:
        if self._bar is None:
            if sys.stderr is None or not sys.stderr.isatty() or time.monotonic() - self._start < PATIENCE_SECONDS:
                return
            self._bar = _new_bar(total_bytes)
        progress, task = self._bar
        progress.update(task, completed=loaded_bytes, total=total_bytes)


def _new_bar(total_bytes: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("loading"), BarColumn(), DownloadColumn(), console=Console(stderr=True), transient=True
    )
    progress.start()
    return progress, progress.add_task("loading", total=total_bytes)
