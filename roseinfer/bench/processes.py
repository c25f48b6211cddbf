"""A server of our own as a child process, and what processes have used: CPU time and memory, as Linux tells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from roseinfer.core.config import ENV_PREFIX, Config, Knob, knobs_of
from roseinfer.core.errors import ConfigError, EngineError

STOP_SECONDS = 10
_PROC = Path("/proc")
_URL = re.compile(r"\bat (http://\S+)")


@dataclass(frozen=True, slots=True)
class ServerProcess:
    url: str
    pid: int
    ready_seconds: float  # from its start until it serves


@contextmanager
def server_process(config: Config) -> Iterator[ServerProcess]:
    """`roseinfer serve` on a free loopback port, until the context is left.

    Only what `config` says of model and engine reaches it, no environment and no file. Raises ConfigError or
    EngineError with what the server said if it does not come up.
    """
    started = perf_counter()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    with subprocess.Popen(
        serve_command(config),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        # The log is read to its end, so that the server never waits for room in the pipe.
        reader = threading.Thread(target=deque, args=(process.stderr, 0), daemon=True)
        try:
            url = _read_url(process, process.stderr)
            ready_seconds = perf_counter() - started
            reader.start()
            yield ServerProcess(url, process.pid, ready_seconds)
        finally:
            _stop(process)
            if reader.is_alive():
                reader.join()


def _read_url(process: subprocess.Popen[str], log: Iterable[str]) -> str:
    line = ""
    for line in log:
        if match := _URL.search(line):
            return match[1]
    code = process.wait()
    said = line.strip().removeprefix("error: ") or f"the server ended with code {code}"
    raise ConfigError(said) if code == 2 else EngineError(said)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve_command(config: Config) -> list[str]:
    """Every setting of model and engine is said, so that no environment or file adds to them."""
    flags = [_flag(knob, getattr(config, knob.name)) for knob in knobs_of("model", "engine") if knob.name != "model"]
    own = ["--host=127.0.0.1", "--port=0", "--log-level=info", f"--config={os.devnull}"]
    return [sys.executable, "-m", "roseinfer", "serve", *filter(None, flags), *own, "--", config.model]


def _flag(knob: Knob, value: Any) -> str:
    if value is None:
        return ""
    if knob.kind.is_switch:
        return knob.flag if value else f"--no-{knob.flag[2:]}"
    return f"{knob.flag}={value}"


@dataclass(frozen=True, slots=True)
class Resources:
    """Of a process and its descendants."""

    cpu_seconds: float  # used so far
    rss_bytes: int
    peak_rss_bytes: int  # the sum of each one's peak


def resources_of(pid: int) -> Resources | None:
    """None where there is no /proc, or no such process."""
    parts = [part for member in _family(pid) if (part := _own_resources(member)) is not None]
    if not parts:
        return None
    return Resources(
        sum(part.cpu_seconds for part in parts),
        sum(part.rss_bytes for part in parts),
        sum(part.peak_rss_bytes for part in parts),
    )


def _family(pid: int) -> list[int]:
    parents = {int(folder.name): _stat(int(folder.name)) for folder in _PROC.glob("[0-9]*")}
    family = [pid] if pid in parents else []
    for member in family:  # grows as children are found
        family += [child for child, stat in parents.items() if stat and int(stat[1]) == member]
    return family


def _own_resources(pid: int) -> Resources | None:
    stat, sizes = _stat(pid), _sizes(pid)
    if not stat or not sizes:
        return None
    ticks = int(stat[11]) + int(stat[12])  # utime, stime
    return Resources(ticks / os.sysconf("SC_CLK_TCK"), sizes.get("VmRSS", 0), sizes.get("VmHWM", 0))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command's name, which may hold anything: state, parent, …; proc(5)."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _sizes(pid: int) -> dict[str, int]:
    """The lines of /proc/PID/status that end in kB, in bytes."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields}
