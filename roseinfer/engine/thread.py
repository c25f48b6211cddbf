"""An engine on a thread of this process."""

from __future__ import annotations

import logging
import threading

from roseinfer.core.messages import Command
from roseinfer.engine.engine import Engine
from roseinfer.engine.host import OnExit, OnStep
from roseinfer.engine.loop import EngineLoop

logger = logging.getLogger(__name__)


class EngineThread:
    """`EngineHost` around an engine, which it closes at the end."""

    num_restarts = 0

    def __init__(self, engine: Engine) -> None:
        self.vocab_size = engine.vocab_size
        self.max_model_len = engine.max_model_len
        self.max_running = engine.max_running
        self.stats = engine.stats
        self._engine = engine
        self._loop: EngineLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_ready(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, on_step: OnStep, on_exit: OnExit) -> None:
        loop = self._loop = EngineLoop(self._engine, on_step)
        self._thread = threading.Thread(target=self._run, args=(loop, on_exit), name="roseinfer-engine", daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        assert self._loop is not None
        self._loop.put(command)

    def close(self) -> None:
        """Lets the current step end and waits for the thread."""
        if self._loop is not None and self._thread is not None:
            self._loop.stop()
            self._thread.join()

    def _run(self, loop: EngineLoop, on_exit: OnExit) -> None:
        error: BaseException | None = None
        try:
            loop.run()
        except BaseException as caught:
            logger.critical("the engine died", exc_info=caught)
            error = caught
        finally:
            on_exit(error)
            self._engine.close()
