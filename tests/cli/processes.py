"""Commands and servers as processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Callable

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "ServerProcess"]


class ServerProcess:
    """Its log is read line by line until it says where it serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.url = ""
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line.rstrip())
            if match := re.search(r" at (http://\S+)", line):
                self.url = match[1]
                break
        self._reader = threading.Thread(target=self._read_rest, daemon=True)
        self._reader.start()

    def _read_rest(self) -> None:
        assert self.process.stderr is not None
        self.log += [line.rstrip() for line in self.process.stderr]

    def stop(self, sig: int = signal.SIGTERM, seconds: float = 20) -> int:
        self.process.send_signal(sig)
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code
