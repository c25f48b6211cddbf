"""Where an engine runs, as its client sees it: on a thread of this process or in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from roseinfer.core.messages import Command, EngineStats, StepOutput

OnStep = Callable[[StepOutput, EngineStats], None]
OnExit = Callable[[BaseException | None], None]


class EngineHost(Protocol):
    """An engine that takes commands and answers with steps. Every request that it takes is finished by one output."""

    vocab_size: int
    max_model_len: int  # tokens of prompt and output together
    max_running: int

    def start(self, on_step: OnStep, on_exit: OnExit) -> None:
        """Both are called on one thread; `on_exit` once, as the last thing, with the error that ended the engine or
        None after `close`. No request is finished behind it.
        """

    def send(self, command: Command) -> None:
        """Applied before the next step; never blocks."""

    def close(self) -> None:
        """Ends the engine and waits for it."""

    def stats(self) -> EngineStats:
        """Before the first step."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are being computed at this moment, as far as can be told."""

    @property
    def num_restarts(self) -> int:
        """How often the engine died and was started anew."""
