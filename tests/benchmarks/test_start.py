"""The start benchmark: waits for the first token, reads what the processes took, leaves none behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import start

# Listens late, is busy twice, then streams; keeps 64 MiB, half of it in a child.
SERVER = """
import http.server, subprocess, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    num_asked = 0
    def do_POST(self):
        Handler.num_asked += 1
        self.send_response(503 if Handler.num_asked < 3 else 200)
        self.end_headers()
        self.wfile.write(b"x")
    def log_message(self, *_): pass
MEMORY = "bytearray(32 << 20).replace(b'x', b'y')"
child = subprocess.Popen([sys.executable, "-c", f"import time; kept = {MEMORY}; print(flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE)
child.stdout.readline()
kept = eval(MEMORY)
time.sleep(0.2)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def measure(folder: Path, server: str) -> start.Start:
    script = folder / "server.py"
    script.write_text(server)
    return start.measure(f"{{python}} {script} {{port}}", start.URL, start.BODY, Path("model.gguf"), timeout=30)


def test_a_start_is_measured(tmp_path: Path) -> None:
    measured = measure(tmp_path, SERVER)
    assert 0.2 < measured.seconds < 30
    assert 0 < measured.cpu_seconds < 30
    assert 64 < measured.anonymous <= measured.rss <= measured.peak


def test_nothing_is_left_running(tmp_path: Path) -> None:
    measure(tmp_path, SERVER.replace("kept", f"kept_by_{tmp_path.name}"))
    assert f"kept_by_{tmp_path.name}" not in "".join(map(command_line, Path("/proc").glob("[0-9]*")))


def test_a_server_that_ends_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        measure(tmp_path, "import sys; sys.exit(3)")


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""
