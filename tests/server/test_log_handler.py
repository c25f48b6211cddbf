from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

SET_UP = """
import logging, sys, time
from roseinfer.server.log_handler import log_to_stderr
log_to_stderr()
logger = logging.getLogger("roseinfer")
logger.setLevel("INFO")
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SET_UP + program], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )


def test_ours_from_our_level_on_others_from_warnings_on() -> None:
    found = run("""
logger.info("ours")
logging.getLogger("another").info("not told")
logging.getLogger("another").warning("theirs")
""")
    assert (found.stderr, found.returncode) == ("INFO ours\nWARNING theirs\n", 0)


def test_the_last_lines_before_an_exit_are_written() -> None:
    found = run("""
for number in range(100):
    logger.info("%d", number)
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("odd")
sys.exit(3)
""")
    lines = found.stderr.splitlines()
    assert found.returncode == 3
    assert lines[:101] == [*[f"INFO {number}" for number in range(100)], "ERROR odd"]
    assert (lines[101], lines[-1]) == (
        "Traceback (most recent call last):",
        "ZeroDivisionError: division by zero",
    )


def test_a_line_is_out_before_a_process_is_killed_a_little_later() -> None:
    found = run("""
logger.info("ours")
time.sleep(0.5)
import os
os._exit(1)
""")
    assert found.stderr == "INFO ours\n"


def test_who_does_not_read_holds_nobody_up_and_is_told() -> None:
    program = """
started = time.monotonic()
for number in range(20_000):
    logger.info("a line that is long enough to fill a pipe soon, %d", number)
print(time.monotonic() - started, flush=True)
"""
    source, sink = os.pipe()
    with os.fdopen(source, "rb") as reader:
        command = [sys.executable, "-c", SET_UP + program]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=sink) as process:
            os.close(sink)
            assert process.stdout is not None
            assert float(process.stdout.readline()) < 5
            assert process.wait(20) == 0
        lines = reader.read().decode().splitlines()
    assert lines[0] == "INFO a line that is long enough to fill a pipe soon, 0"
    assert len(lines) < 20_000


def test_a_line_that_cannot_be_made_is_told_of_as_logging_does() -> None:
    found = run('logger.info("%d", "word")\nlogger.info("next")')
    assert found.returncode == 0
    assert "TypeError" in found.stderr
    assert "INFO next\n" in found.stderr


def test_what_was_set_up_already_is_left_alone() -> None:
    from roseinfer.server.log_handler import log_to_stderr

    before = list(logging.getLogger().handlers)
    assert before, "pytest has some"
    started = time.monotonic()
    log_to_stderr()
    assert logging.getLogger().handlers == before
    assert time.monotonic() - started < 1
