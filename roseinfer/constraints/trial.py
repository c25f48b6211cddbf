"""The server's end of the process that tries grammars out."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from typing import Any

from roseinfer.constraints.token_table import TokenTable
from roseinfer.core.errors import EngineError
from roseinfer.core.python_process import start_python


class CompileTrial:
    """Starts the process when it is first needed and whenever a grammar has ended it. For one thread."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._settings = b""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, table: TokenTable) -> None:
        """Of this vocabulary from now on; does not wait until the process is ready."""
        eos_ids = list(table.eos_ids) or [len(table.tokens)]
        num_tokens = max(len(table.tokens), *(i + 1 for i in eos_ids))
        special = {i: table.tokens[i].hex() for i in {*table.special_ids, *eos_ids} if i < len(table.tokens)}
        special.update({i: "" for i in eos_ids if i >= len(table.tokens)})
        self._settings = _line({"num_tokens": num_tokens, "special": special, "eos_ids": eos_ids})
        self._restart()

    def complaint(self, source: str) -> str:
        """What the compiler has against `source`, "" for nothing."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._restart()
        reply = _ask(process, _line({"source": source, "seconds": self._max_seconds}))
        if reply:
            return str(json.loads(reply)["error"])
        status = process.wait()
        if status == -signal.SIGALRM:
            return f"compiling it takes more than {self._max_seconds:g} s"
        if status < 0:
            return "compiling it takes too much memory or too deep a stack"
        raise EngineError(f"the process that tries grammars out has ended with status {status}")

    def close(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        _close_pipes(process)

    def _restart(self) -> subprocess.Popen[bytes]:
        self.close()
        self._process = start_python(
            "from roseinfer.constraints.trial_process import main; main()",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        _send(self._process, self._settings)
        return self._process


def _ask(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """Its reply, b"" if it died of the request."""
    _send(process, request)
    assert process.stdout is not None
    return process.stdout.readline()


def _send(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # reading from it tells
        process.stdin.write(message)
        process.stdin.flush()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # what was not read yet
                pipe.close()
