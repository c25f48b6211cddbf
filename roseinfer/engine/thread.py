"""The engine's side of the border, on a thread of its own: commands go in, one message per step comes out.

Nothing else crosses: a client that works with this works with an engine in another process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from roseinfer.core.messages import AddRequest, Command, EngineStats, StepOutput
from roseinfer.engine.engine import Engine

logger = logging.getLogger(__name__)


class _WakeUp:
    """Something that the engine waited for is there."""


_WAKE_UP: Final = _WakeUp()


class EngineThread:
    """Steps the engine while it has work, sleeps otherwise, and closes it at the end.

    `on_step` and `on_exit` are called on the thread; `on_exit` once, as the last thing, with the error that
    ended it or None after `close`.
    """

    def __init__(
        self,
        engine: Engine,
        on_step: Callable[[StepOutput, EngineStats], None],
        on_exit: Callable[[BaseException | None], None],
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_exit = on_exit
        self._commands: SimpleQueue[Command | _WakeUp | None] = SimpleQueue()  # None = stop
        engine.on_ready = lambda: self._commands.put(_WAKE_UP)
        self._thread = threading.Thread(target=self._run, name="roseinfer-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, command: Command) -> None:
        """Applied before the next step; never blocks."""
        self._commands.put(command)

    def close(self) -> None:
        """Lets the current step end and waits for the thread."""
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._take_commands():
                output = self._engine.step()
                self._on_step(output, self._engine.stats())
        except BaseException as caught:
            logger.critical("the engine died", exc_info=caught)
            error = caught
        finally:
            self._on_exit(error)
            self._engine.close()

    def _take_commands(self) -> bool:
        """Applies what has come in, and waits for something to do if there is nothing. False when told to stop."""
        while not (self._engine.has_work and self._commands.empty()):
            command = self._commands.get()
            if command is None:
                return False
            if not isinstance(command, _WakeUp):
                self._apply(command)
        return True

    def _apply(self, command: Command) -> None:
        if isinstance(command, AddRequest):
            self._engine.add(command)
        else:
            self._engine.abort(command.request_id)
