"""A server as a process of its own, with what Linux tells about it from outside: /proc, signals, a port."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from roseinfer.core.config import ENV_PREFIX

ROOT = Path(__file__).parents[2]
ENGINE_MAINS = ("roseinfer.engine.child", "tests.chaos.faulty_child")  # in the command line of an engine's process
START_SECONDS = 120.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.005

_PROC = Path("/proc")
_SERIES = re.compile(r"^([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)(?: \d+)?$", re.MULTILINE)


class ServerUnderTest:
    """Runs `command` as long as the context lasts; entered, it answers at `ready_path`.

    What it writes is at `log_path`. No process of it is left behind, however it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        ready_path: str,
        env: Mapping[str, str] | None = None,
        api_keys: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api_key = api_keys[0] if api_keys else None
        self._command = list(command)
        self._env = dict(os.environ if env is None else env)
        self.ready_path = ready_path
        self._folder = tempfile.TemporaryDirectory(prefix="chaos-")
        self.log_path = Path(self._folder.name) / "server.log"
        if api_keys:
            key_file = Path(self._folder.name) / "keys"
            key_file.write_text("\n".join(api_keys))
            self._env[ENV_PREFIX + "API_KEY_FILE"] = str(key_file)
        self._process: subprocess.Popen[bytes] | None = None
        self._engines: set[int] = set()  # every one that was seen

    # -- life -----------------------------------------------------------------------------------------------

    def __enter__(self) -> ServerUnderTest:
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=ROOT,
                start_new_session=True,
            )
        try:
            self.wait_until_ready(START_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def wait_until_ready(self, seconds: float) -> float:
        """How long it took. Raises RuntimeError with the end of the log if the server ends, or does not come."""
        started = time.monotonic()
        while (waited := time.monotonic() - started) < seconds:
            if self.exit_code() is not None:
                raise RuntimeError(f"the server ended with code {self.exit_code()}:\n{self.log()[-2000:]}")
            if self.is_ready():
                return waited
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"the server was not ready within {seconds:g} s:\n{self.log()[-2000:]}")

    def stop(self, signal: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Sends it and waits for the server's end; the exit code, negative for a signal's.

        Raises TimeoutError if it does not end.
        """
        self.send(signal)
        return self.wait(seconds)

    def send(self, signal: int) -> None:
        os.kill(self.pid, signal)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Raises TimeoutError."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the server has not ended within {seconds:g} s") from None

    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def _end(self) -> None:
        assert self._process is not None
        self._engines.update(engine_pids(self.pid))
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pid in self._engines:
            if is_engine(pid):  # the number may be another process's by now
                kill(pid)
        self._folder.cleanup()

    # -- what it says ---------------------------------------------------------------------------------------

    def status(self, path: str, seconds: float = 5.0) -> int:
        """Of a GET; 0 where nobody answers in time."""
        try:
            return self._get(path, seconds)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def is_ready(self) -> bool:
        return self.status(self.ready_path) == 200

    def metrics(self) -> dict[str, float]:
        """By name with labels, as `/metrics` writes them. Raises OSError."""
        text = self._get("/metrics", START_SECONDS)[1].decode()
        return {name: float(value) for name, value in _SERIES.findall(text)}

    def _get(self, path: str, seconds: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    # -- its processes --------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def engine_pid(self) -> int:
        """The engine's process. Raises LookupError while there is none."""
        pids = engine_pids(self.pid)
        if not pids:
            raise LookupError("the server has no engine process now")
        self._engines.update(pids)
        return pids[-1]

    def num_fds(self, pid: int) -> int:
        return len(list((_PROC / str(pid) / "fd").iterdir()))

    def num_threads(self, pid: int) -> int:
        return len(list((_PROC / str(pid) / "task").iterdir()))

    def rss_anon(self, pid: int) -> int:
        """Bytes of memory that no file on a disk stands behind; the KV cache is shared memory."""
        status = (_PROC / str(pid) / "status").read_text()
        sizes = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", status, re.MULTILINE)
        if not sizes:
            raise LookupError(f"process {pid} has no memory any more")
        return sum(map(int, sizes)) * 1024


def roseinfer_server(
    model: str | Path = "smollm2-135m",
    *flags: str,
    api_keys: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    main: str = "roseinfer",
) -> ServerUnderTest:
    """`roseinfer serve MODEL FLAGS` on a free loopback port, with `env` beside an environment without our settings.

    `main`: the module that is run in place of `roseinfer`, with the same arguments.
    """
    port = free_port()
    keep = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    command = [sys.executable, "-m", main, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *flags]
    return ServerUnderTest(
        command,
        port,
        ready_path="/health/ready",
        env={**keep, "PYTHONPATH": str(ROOT), ENV_PREFIX + "CONFIG": os.devnull, **(env or {})},
        api_keys=api_keys,
    )


def peer_server(command: str, model: str | Path) -> ServerUnderTest:
    """Another server that answers at `/health`; `command` names `{model}` and `{port}`."""
    port = free_port()
    words = [word.format(model=model, port=port) for word in shlex.split(command)]
    return ServerUnderTest(words, port, ready_path="/health")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kill(pid: int, signal: int = signal.SIGKILL) -> None:
    """A process that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal)


def engine_pids(parent: int) -> list[int]:
    """Those of `parent`'s engines that run, the oldest first; a dead one that nobody has waited for is none."""
    return sorted(pid for pid in child_pids(parent) if is_engine(pid))


def is_engine(pid: int) -> bool:
    return any(f"from {main} import" in command_line(pid) for main in ENGINE_MAINS)


def child_pids(parent: int) -> list[int]:
    """Those that nobody has waited for yet included."""
    return [int(folder.name) for folder in _PROC.glob("[0-9]*") if _parent_of(int(folder.name)) == parent]


def _parent_of(pid: int) -> int:
    """0 for a process that is gone; the fields of stat stand behind the command's name, which may hold anything."""
    try:
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    found = child_pids(pid)
    for member in found:  # grows as children are found
        found += child_pids(member)
    return found


def command_line(pid: int) -> str:
    """Empty for a process that is dead or gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
