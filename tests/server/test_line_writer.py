from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from roseinfer.server.line_writer import LineWriter, write_text
from tests.server.limited import eventually

ROOT = Path(__file__).parents[2]


class SlowReader:
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        self.text = ""
        self.may_read = threading.Event()
        self.is_waiting = threading.Event()

    def write(self, text: str) -> None:
        self.is_waiting.set()
        assert self.may_read.wait(10)
        self.text += text


def dropped(count: int) -> str:
    return f"{count} dropped"


def test_lines_are_written_in_order_and_together() -> None:
    written: list[str] = []
    writer = LineWriter(written.append, dropped)
    for number in range(100):
        writer.put(str(number))
    writer.close()
    assert "".join(written) == "".join(f"{number}\n" for number in range(100))
    assert len(written) < 20


def test_a_line_is_not_kept_until_the_next_one() -> None:
    written: list[str] = []
    writer = LineWriter(written.append, dropped)
    for number in range(3):
        writer.put(str(number))
        eventually(lambda: written and written[-1] == f"{number}\n")  # noqa: B023
    writer.close()


def test_a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_missed() -> None:
    reader = SlowReader()
    writer = LineWriter(reader.write, dropped, max_lines=10)
    writer.put("first")
    assert reader.is_waiting.wait(10)
    started = time.monotonic()
    for number in range(1000):
        writer.put(str(number))
    assert time.monotonic() - started < 1
    writer.close(0.05)
    assert time.monotonic() - started < 2
    reader.may_read.set()
    eventually(lambda: "dropped" in reader.text)
    assert reader.text.split("\n") == ["first", *map(str, range(10)), "990 dropped", ""]


def test_lines_from_many_threads() -> None:
    written: list[str] = []
    writer = LineWriter(written.append, dropped, max_lines=100_000)
    threads = [
        threading.Thread(target=lambda: [writer.put("line") for _ in range(1000)])  # type: ignore[func-returns-value]
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert "".join(written) == "line\n" * 4000


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_streams_without_a_file(stream: io.StringIO | None) -> None:
    write_text(stream, "text")
    assert stream is None or stream.getvalue() == "text"


def test_a_closed_stream_takes_nothing(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as closed:
        closed.close()
        write_text(closed, "text")
    assert (tmp_path / "log").read_text() == ""


def test_more_than_a_pipe_holds_even_if_it_does_not_block() -> None:
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    text = "ü" * 200_000
    received: list[bytes] = []
    with os.fdopen(source, "rb") as reader:
        thread = threading.Thread(target=lambda: received.append(reader.read()))
        thread.start()
        with os.fdopen(sink, "w", encoding="utf-8") as writer:
            write_text(writer, text)
        thread.join(10)
    assert received == [text.encode()]


def test_a_reader_that_stalls_does_not_keep_the_process_from_ending() -> None:
    program = """
import logging
from roseinfer.server.middleware.access_log import logger, set_up_access_log
set_up_access_log(True)
for number in range(10_000):
    logger.info("a line that is long enough to fill a pipe soon, %d", number)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
