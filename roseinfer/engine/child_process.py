"""The server's end of one engine process: from its start to its death, and never beyond."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from roseinfer.core.machine import num_oom_kills
from roseinfer.core.messages import AddRequest
from roseinfer.core.python_process import start_python
from roseinfer.engine.frames import (
    BUFFER_BYTES,
    EngineCommand,
    EngineEvent,
    FrameReader,
    Vocabulary,
    encode,
)

logger = logging.getLogger(__name__)

EXIT_SECONDS = 1.0  # for a process that has been told to go
REAP_SECONDS = 0.1  # for what such a process had started
_PAUSE_SECONDS = 0.01


class ChildProcess:
    """Commands go through a thread of their own, so that a process that does not read holds nobody up.

    `main`: the module whose `main(socket_fd, *fds)` is the process; None stands for a file that there is not.
    `read_vocabulary` is called on that thread, before the first request with a grammar. `on_unsendable` is told of a
    request that does not fit into a frame.
    """

    def __init__(
        self,
        main: str,
        fds: Sequence[int | None],
        read_vocabulary: Callable[[], Vocabulary],
        on_unsendable: Callable[[str, Exception], None],
    ) -> None:
        self._read_vocabulary: Callable[[], Vocabulary] | None = read_vocabulary
        self._on_unsendable = on_unsendable
        self._socket, theirs = socket.socketpair()
        try:
            self._process = self._start(main, theirs, fds)
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._is_killed_here = False
        self._num_oom_kills = num_oom_kills()
        self._reader = FrameReader(self._socket, EngineEvent)
        self._commands: SimpleQueue[EngineCommand | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="roseinfer-commands", daemon=True)
        self._writer.start()

    def _start(self, main: str, theirs: socket.socket, fds: Sequence[int | None]) -> subprocess.Popen[bytes]:
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        arguments = (theirs.fileno(), *fds)
        code = f"from {main} import main; main{arguments}"
        inherited = [fd for fd in arguments if fd is not None]
        return start_python(code, inherited, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: EngineCommand) -> None:
        """In order; never blocks. A process that is gone gets nothing."""
        self._commands.put(command)

    def read(self, timeout: float) -> EngineEvent:
        """The next event. Raises TimeoutError, EOFError if the process is gone, ValueError if it talks nonsense."""
        event: EngineEvent = self._reader.read(timeout)
        return event

    def kill(self) -> None:
        self._is_killed_here = True
        self._process.kill()

    @property
    def was_killed_by_others(self) -> bool:
        """Whether somebody sent SIGKILL to a process that has ended, which was sound until then."""
        is_killed = self._process.returncode == -signal.SIGKILL and not self._is_killed_here
        return is_killed and num_oom_kills() == self._num_oom_kills

    def end(self) -> str:
        """Waits for a process that is gone or going, kills it if it stays, and says how it ended."""
        with contextlib.suppress(OSError):  # where the other end is gone, some systems say
            self._socket.shutdown(socket.SHUT_RDWR)  # which a healthy process takes for the word to go
        self._commands.put(None)
        try:
            status = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.wait()
        self._writer.join()
        self._socket.close()
        _reap_group(self._process.pid)
        return _describe(status)

    def _write_all(self) -> None:
        while (command := self._commands.get()) is not None:
            try:
                self._write(command)
            except OSError:  # gone; whoever reads finds out
                return

    def _write(self, command: EngineCommand) -> None:
        try:
            frames = self._frames(command)
        except Exception as error:  # one request's fault is never another's
            logger.exception("a command cannot be sent")
            if isinstance(command, AddRequest):
                self._on_unsendable(command.request_id, error)
            else:
                self.kill()
            return
        self._socket.sendall(frames)

    def _frames(self, command: EngineCommand) -> bytes:
        frame = encode(command)
        if isinstance(command, AddRequest) and command.grammar is not None and self._read_vocabulary is not None:
            frame = encode(self._read_vocabulary()) + frame
            self._read_vocabulary = None
        return frame


def _reap_group(pid: int) -> None:
    """What the engine itself had started dies with it, and is ours to reap where this process is the system's first."""
    deadline = time.monotonic() + REAP_SECONDS
    with contextlib.suppress(ChildProcessError):  # everywhere else, at once
        while time.monotonic() < deadline:
            if os.waitpid(-pid, os.WNOHANG) == (0, 0):
                time.sleep(_PAUSE_SECONDS)


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
