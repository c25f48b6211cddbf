"""A server of our own as a child, and what processes have used."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import roseinfer.bench.processes as processes
from roseinfer.bench.http_client import HttpClient
from roseinfer.bench.processes import Resources, resources_of, serve_command, server_process
from roseinfer.core.config import Config, load_config
from roseinfer.core.errors import ConfigError, EngineError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


@pytest.fixture
def config() -> Config:
    return load_config({"model": "m.gguf", "threads": 2, "prefix_cache": False}, environ={})


def serve_instead(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(processes, "serve_command", lambda config: [sys.executable, *command])


def test_every_setting_is_said(config: Config) -> None:
    command = serve_command(config)
    assert command[:4] == [sys.executable, "-m", "roseinfer", "serve"]
    assert command[-2:] == ["--", "m.gguf"]
    assert {"--threads=2", "--no-prefix-cache", "--max-running=64", "--host=127.0.0.1", "--port=0"} <= set(command)
    assert f"--config={os.devnull}" in command
    assert not any("None" in word or word.startswith(("--tokenizer", "--model=")) for word in command)


def test_the_real_command_understands_it(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It gets as far as missing the file, and what it says comes back; the environment does not reach it."""
    monkeypatch.setenv("ROSEINFER_THREADS", "no number")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^there is no file or folder 'm\.gguf'"), server_process(config):
        pass


def test_a_server_comes_up_and_goes_away(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    async def health(url: str) -> tuple[int, object]:
        client = HttpClient(url)
        try:
            return await client.fetch("/health")
        finally:
            client.close()

    serve_instead(monkeypatch, "-m", "tests.cli.fake_main", "serve", "--port", "0")
    with server_process(config) as process:
        assert asyncio.run(health(process.url)) == (200, {"status": "ok"})
        assert 0 < process.ready_seconds < 60
        used = resources_of(process.pid)
        assert used is not None
        assert used.cpu_seconds > 0
        assert used.peak_rss_bytes >= used.rss_bytes > 1 << 20
    with pytest.raises(OSError, match="Connect call failed"):
        asyncio.run(health(process.url))
    assert resources_of(process.pid) is None


def test_a_server_that_does_not_stop_is_killed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.1)
    stubborn = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('is served at http://127.0.0.1:1', file=sys.stderr, flush=True); time.sleep(60)"
    )
    serve_instead(monkeypatch, "-c", stubborn)
    with server_process(config) as process:
        assert process.url == "http://127.0.0.1:1"
    assert resources_of(process.pid) is None


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("print('error: broken', file=sys.stderr); sys.exit(1)", EngineError, "^broken$"),
        ("print('error: no such flag', file=sys.stderr); sys.exit(2)", ConfigError, "^no such flag$"),
        ("sys.exit(3)", EngineError, "the server ended with code 3"),
    ],
)
def test_a_server_that_does_not_come_up(
    code: str, error: type[Exception], said: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_instead(monkeypatch, "-c", f"import sys; {code}")
    with pytest.raises(error, match=said), server_process(config):
        pass


def test_descendants_are_counted() -> None:
    """A parent that does nothing, and its child that has worked for some time and holds 64 MiB."""
    child = "x = b'x' * (64 << 20)\nwhile time.process_time() < 0.2: pass\nprint('ready', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {'import time; ' + child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            used = resources_of(process.pid)
        finally:
            os.killpg(process.pid, 9)
    assert used is not None
    assert used.cpu_seconds >= 0.2
    assert used.rss_bytes > 64 << 20


def test_the_processes_own_use() -> None:
    before = resources_of(os.getpid())
    started = time.process_time()
    while time.process_time() - started < 0.1:
        pass
    after = resources_of(os.getpid())
    assert isinstance(before, Resources)
    assert isinstance(after, Resources)
    assert 0.05 < after.cpu_seconds - before.cpu_seconds < 5


def test_nobody_has_used_nothing() -> None:
    assert resources_of(2**22 + 1) is None
