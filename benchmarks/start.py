"""How soon a server answers and what memory it takes: process start → first token over HTTP, again and again.

    python benchmarks/start.py [MODEL] [--starts 5]
    python benchmarks/start.py model.gguf --url http://127.0.0.1:{port}/v1/completions \
        --command "llama-server -m {model} --port {port}" --command "roseinfer serve {model} --port {port}"

Several commands are started in turn (A B A B), so that they meet the same neighbours. {model}, {port} and {python}
are filled in. The clock runs from before the fork to the first byte of the streamed reply's body; CPU seconds and
memory are read then, summed over the processes of the command. Refused connections and 503 count as "not yet". One
start before the first round fills the page cache. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from roseinfer.catalog import resolve_model
from roseinfer.core.config import load_config

COMMAND = "{python} -m roseinfer serve {model} --port {port}"
URL = "http://127.0.0.1:{port}/generate"
BODY = '{"prompt": "The capital of France is", "max_new_tokens": 1, "max_tokens": 1, "stream": true}'
POLL_SECONDS = 0.001
MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """One start; memory in MiB."""

    seconds: float  # from before the fork to the first byte of text
    cpu_seconds: float  # user and system
    rss: float
    anonymous: float  # the part of rss that is no file's
    huge: float  # the part of rss in huge pages
    peak: float  # highest rss of each process until then


def main() -> None:
    args = parse_arguments()
    model = resolve_model(args.model, load_config().models_dir, print)
    commands = args.command or [COMMAND]
    starts: dict[str, list[Start]] = {command: [] for command in commands}
    for round_ in range(args.starts + 1):
        for command in commands:
            start = measure(command, args.url, args.body, model, args.timeout)
            if round_ > 0:
                starts[command].append(start)
    report(starts, model.stat().st_size / MIB if model.is_file() else 0.0)


def report(starts: dict[str, list[Start]], file_size: float) -> None:
    names = [field.name for field in dataclasses.fields(Start)]
    print(f"{'median (min - max)':<20}" + "".join(f"{name:>22}" for name in names))
    for command, measured in starts.items():
        print(command)
        columns = [[getattr(start, name) for start in measured] for name in names]
        print(f"{'':<20}" + "".join(f"{spread(column):>22}" for column in columns))
        beside = statistics.median(start.rss for start in measured) - file_size
        print(f"{'':<20}rss beside the model file's {file_size:.0f} MiB: {beside:.0f} MiB")


def spread(values: list[float]) -> str:
    digits = 3 if max(values) < 20 else 0
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} - {high})"


def measure(command: str, url: str, body: str, model: Path, timeout: float) -> Start:
    fields = {"model": str(model), "port": str(free_port()), "python": sys.executable}
    target = urllib.parse.urlsplit(url.replace("{port}", fields["port"]))
    words = [word.format(**fields) for word in shlex.split(command)]
    begin = time.monotonic()
    with running(words) as process:
        wait_for_first_token(process, target, body, begin + timeout)
        return read_usage(process.pid, time.monotonic() - begin)


@contextmanager
def running(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own, all of which is ended at the end."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            end_session(process.pid)


def end_session(leader: int) -> None:
    """Kills a session's processes and waits until they are gone, as a killed one lives on for a moment."""
    while pids := session_of(leader):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def wait_for_first_token(
    process: subprocess.Popen[bytes], target: urllib.parse.SplitResult, body: str, deadline: float
) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        if has_answered(target, body):
            return
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"{process.args!r} gave no token in time")


def has_answered(target: urllib.parse.SplitResult, body: str) -> bool:
    """Whether the first byte of a reply's body came; False while the server does not serve yet."""
    connection = http.client.HTTPConnection(target.hostname or "127.0.0.1", target.port, timeout=60)
    try:
        connection.request("POST", target.path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read(1)
    except (ConnectionError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if reply.status not in (200, 503) or (reply.status == 200 and not text):
        raise SystemExit(f"{target.geturl()} answered {reply.status} {reply.reason}")
    return reply.status == 200


def read_usage(session: int, seconds: float) -> Start:
    pids = session_of(session)
    fields = [proc_fields(pid, "status") for pid in pids]
    maps = [proc_fields(pid, "smaps_rollup") for pid in pids]

    def mib(tables: list[dict[str, int]], name: str) -> float:
        return sum(table.get(name, 0) for table in tables) / 1024

    return Start(
        seconds=seconds,
        cpu_seconds=sum(cpu_seconds(pid) for pid in pids),
        rss=mib(fields, "VmRSS"),
        anonymous=mib(fields, "RssAnon"),
        huge=mib(maps, "AnonHugePages"),
        peak=mib(fields, "VmHWM"),
    )


def session_of(leader: int) -> list[int]:
    """The living processes of a session, the leader's id being the session's."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    stats = ((pid, stat_fields(pid)) for pid in pids)
    return [pid for pid, stat in stats if stat[3:4] == [str(leader)] and stat[0] not in "ZX"]


def cpu_seconds(pid: int) -> float:
    user, system = stat_fields(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on, which is what follows the name in brackets; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def proc_fields(pid: int, file: str) -> dict[str, int]:
    """The `Name: 123 kB` lines of a file under /proc/PID, in kB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/{file}").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1:] == ["kB"]}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times process start to first token over HTTP, and reads memory.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--command", action="append", help=f"what to start; may be repeated (default: {COMMAND})")
    parser.add_argument("--url", default=URL, help="where the request goes (default: %(default)s)")
    parser.add_argument("--body", default=BODY, help="the request, which must ask for a stream")
    parser.add_argument("--timeout", type=float, default=120.0)
    args = parser.parse_args()
    json.loads(args.body)
    return args


if __name__ == "__main__":
    main()
