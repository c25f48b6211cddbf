"""Steps an engine while it has work: commands come in from any thread, one message per step goes out."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from roseinfer.core.messages import AddRequest, Command, EngineStats, StepOutput
from roseinfer.engine.engine import Engine

BEAT_SECONDS = 1.0  # between two signs of life of an engine that has nothing to do


class _WakeUp:
    """Something that the engine waited for is there."""


_WAKE_UP: Final = _WakeUp()


class EngineLoop:
    """`on_step` is called after each step, `on_beat` before it, and once a second while there is nothing to do."""

    def __init__(
        self,
        engine: Engine,
        on_step: Callable[[StepOutput, EngineStats], None],
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_beat = on_beat
        self._commands: SimpleQueue[Command | _WakeUp | None] = SimpleQueue()  # None = stop
        engine.on_ready = lambda: self._commands.put(_WAKE_UP)

    def put(self, command: Command) -> None:
        """Applied before the next step; never blocks."""
        self._commands.put(command)

    def stop(self) -> None:
        """`run` returns after the current step."""
        self._commands.put(None)

    def run(self) -> None:
        """Until `stop`, on the caller's thread."""
        while self._take_commands():
            output = self._engine.step()
            self._on_step(output, self._engine.stats())

    def _take_commands(self) -> bool:
        """Applies what has come in, and waits for something to do if there is nothing. False when told to stop."""
        self._beat()
        while not (self._engine.has_work and self._commands.empty()):
            try:
                command = self._commands.get(timeout=BEAT_SECONDS if self._on_beat else None)
            except Empty:
                self._beat()
                continue
            if command is None:
                return False
            if not isinstance(command, _WakeUp):
                self._apply(command)
        return True

    def _beat(self) -> None:
        if self._on_beat is not None:
            self._on_beat()

    def _apply(self, command: Command) -> None:
        if isinstance(command, AddRequest):
            self._engine.add(command)
        else:
            self._engine.abort(command.request_id)
