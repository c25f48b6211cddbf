"""The process that an engine has for itself: it knows token ids, a model file, and one socket.

It ends when the socket does, at once and in the middle of a step: whoever could use its results is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from roseinfer.constraints.token_table import TokenTable
from roseinfer.core.interpreter import return_freed_memory, settle_interpreter
from roseinfer.core.messages import EngineStats, StepOutput
from roseinfer.core.python_process import die_with_parent
from roseinfer.engine.frames import (
    EngineCommand,
    EngineEvent,
    FrameReader,
    Loading,
    LoadModel,
    Ready,
    StepDone,
    Vocabulary,
    encode,
    load_failure,
)
from roseinfer.engine.loader import Wrap, unwrapped
from roseinfer.engine.loop import EngineLoop
from roseinfer.engine.progress import open_counter

if TYPE_CHECKING:
    from roseinfer.core.batch import UInt64Array
    from roseinfer.engine.engine import Engine
    from roseinfer.engine.model_info import ModelInfo

logger = logging.getLogger(__name__)

OOM_SCORE = "500"  # of 1000: where memory runs out this process goes, which comes back, before the server does


def main(socket_fd: int, progress_fd: int, cache_fd: int | None, wrap: Wrap = unwrapped) -> None:
    """Loads the model that the first command names, and runs what is asked of it until the socket ends.

    `cache_fd` is a file for the KV cache, see `KeptBlocks`; None = it dies with this process. `wrap` may put a program
    of its own between the engine and the model's, as tests do.
    """
    serve_child(partial(EngineServer, cache_fd=cache_fd, wrap=wrap), socket_fd, progress_fd)


def serve_child(server: Callable[[socket.socket, UInt64Array], EngineServer], socket_fd: int, progress_fd: int) -> None:
    _be_a_child()
    server(socket.socket(fileno=socket_fd), open_counter(progress_fd)).run()


class EngineServer:
    """The engine's end of the border."""

    def __init__(
        self, connection: socket.socket, counter: UInt64Array, cache_fd: int | None = None, wrap: Wrap = unwrapped
    ) -> None:
        self._connection = connection
        self._counter = counter
        self._cache_fd = cache_fd
        self._wrap = wrap
        self._reader = FrameReader(connection, EngineCommand)
        self._table: TokenTable | None = None

    def run(self) -> None:
        gc.disable()  # what is loaded now stays
        try:
            command = self._reader.read()
        except EOFError:
            return
        assert isinstance(command, LoadModel)
        _set_up_logging(command.log_level)
        try:
            engine, info = self.build(command)
        except Exception as error:
            with contextlib.suppress(OSError):  # nobody wants to know any more
                self._send(load_failure(error))
            return
        return_freed_memory()
        settle_interpreter()
        gc.enable()
        loop = EngineLoop(engine, self._on_step, self._beat)
        threading.Thread(target=self._read_commands, args=(loop,), name="roseinfer-commands", daemon=True).start()
        self._send(Ready(info, engine.max_model_len, engine.max_running, engine.stats()))
        loop.run()

    def build(self, load: LoadModel) -> tuple[Engine, ModelInfo]:
        """Raises whatever keeps the model from being loaded."""
        from roseinfer.checkpoints import open_checkpoint
        from roseinfer.engine.loading import build_engine_of

        with open_checkpoint(os.fsdecode(load.path)) as checkpoint:
            return build_engine_of(
                load, checkpoint, self._read_table, self._on_progress, self._counter, self._cache_fd, self._wrap
            )

    def _on_progress(self, num_loaded: int, num_bytes: int) -> None:
        self._send(Loading(num_loaded, num_bytes))

    def _read_table(self) -> TokenTable:
        assert self._table is not None, "the vocabulary comes before the first grammar"
        return self._table

    def _on_step(self, step: StepOutput, stats: EngineStats) -> None:
        plain = [output for output in step.outputs if output.prompt_logprobs is None]
        for output in step.outputs:
            if output.prompt_logprobs is not None:  # may fill a frame by itself
                self._send(StepDone([output], stats))
        self._send(StepDone(plain, stats))

    def _beat(self) -> None:
        self._counter[0] += 1

    def _send(self, event: EngineEvent) -> None:
        self._connection.sendall(encode(event))

    def _read_commands(self, loop: EngineLoop) -> None:
        try:
            while True:
                self._take(self._reader.read(), loop)
        except EOFError:
            os._exit(0)
        except BaseException:
            logger.critical("the server cannot be understood", exc_info=True)
            os._exit(1)

    def _take(self, command: EngineCommand, loop: EngineLoop) -> None:
        if isinstance(command, Vocabulary):
            special_ids, eos_ids = frozenset(command.special_ids), tuple(command.eos_ids)
            self._table = TokenTable(command.tokens, special_ids, eos_ids, command.vocab_size)
        elif not isinstance(command, LoadModel):
            loop.put(command)


def _be_a_child() -> None:
    """Signals are the server's to handle; a server that is killed takes this process with it.

    A group of its own, which what it starts belongs to as well, lets the server find that.
    """
    os.setpgid(0, 0)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if sys.stderr is not None:
        faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    die_with_parent()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(OOM_SCORE)


def _set_up_logging(level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("roseinfer").setLevel(level)
