"""How a server ends: what runs is finished, what comes is refused, and nothing that is broken off looks whole."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import ServerProcess
from tests.fake_model import recite
from tests.server.raw_client import GET, POST, assert_refused, connected, post, read_reply, read_to_end

ROOT = Path(__file__).parents[2]
Start = Callable[[float, float], ServerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(drain_timeout: float, step_seconds: float) -> ServerProcess:
            command = [sys.executable, "-m", "tests.server.drain_main", str(drain_timeout), str(step_seconds)]
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return ServerProcess(process)

        yield start


def port_of(server: ServerProcess) -> int:
    return int(server.url.rpartition(":")[2])


def streaming(num_tokens: int, stream: str = "true") -> bytes:
    fields = {"prompt": "a", "max_new_tokens": num_tokens, "stop_on_eos": False, "stream": stream == "true"}
    return post(json.dumps(fields).encode())


def signal_and_wait(server: ServerProcess) -> None:
    """Until it has taken notice."""
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while httpx.get(f"{server.url}/health/ready").status_code != 503:
        assert time.monotonic() < deadline


def test_what_runs_is_finished_and_what_comes_is_refused(start: Start) -> None:
    server = start(30, 0.01)
    port = port_of(server)
    with connected(port) as idle, connected(port) as unused, connected(port) as pipelining, connected(port) as stream:
        idle.sendall(GET + b"\r\n")
        read_reply(idle)
        pipelining.sendall(streaming(100, "false") + streaming(5))
        stream.sendall(streaming(200))
        received = stream.recv(65536)
        signal_and_wait(server)

        assert read_to_end(idle) == b""
        unused.sendall(streaming(5))
        reply = read_to_end(unused)
        assert "stopping" in assert_refused(reply, 503)
        assert b"\r\nretry-after: 5\r\n" in reply
        assert b"server_is_overloaded" in reply
        for path, status in [("/health/live", 200), ("/health/ready", 503), ("/metrics", 200), ("/v1/models", 503)]:
            answer = httpx.get(server.url + path)
            assert (answer.status_code, answer.headers["connection"]) == (status, "close")

        first, _, second = read_to_end(pipelining).partition(b"}HTTP/1.1 ")
        assert json.loads(first.rpartition(b"\r\n\r\n")[2] + b"}")["text"] == "a" + recite("a", 100, stop_on_eos=False)
        assert second.startswith(b"503 ")

        received += read_to_end(stream)
        assert received.endswith(b"0\r\n\r\n")
    assert server.process.wait(10) == 0
    server.stop()
    assert any("stopping" in line for line in server.log)
    assert not any("Traceback" in line or "ERROR" in line or "WARNING" in line for line in server.log), server.log


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_with_nothing_to_do_it_ends_soon(start: Start, sig: int) -> None:
    server = start(30, 0)
    with connected(port_of(server)), connected(port_of(server)) as idle:
        idle.sendall(GET + b"\r\n")
        read_reply(idle)
        started = time.monotonic()
        assert server.stop(sig) == 0
        assert time.monotonic() - started < 3


def test_what_does_not_finish_in_time_ends_with_an_error(start: Start) -> None:
    server = start(0.3, 0.02)
    port = port_of(server)
    chat = b'{"prompt": "a", "max_tokens": 500, "ignore_eos": true, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        text, whole, events, body = [stack.enter_context(connected(port)) for _ in range(4)]
        text.sendall(streaming(500))
        whole.sendall(streaming(500, "false"))
        events.sendall(head + b"Content-Length: %d\r\n\r\n" % len(chat) + chat)
        body.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        received = {text: text.recv(65536), events: events.recv(65536)}
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert not (received[text] + read_to_end(text)).endswith(b"0\r\n\r\n")
        refused = read_to_end(whole)
        assert_refused(refused, 503)
        assert b"\r\nretry-after: 5\r\n" in refused
        last = (received[events] + read_to_end(events)).rpartition(b"data: ")[2]
        for error in (refused.rpartition(b"\r\n\r\n")[2], last.partition(b"\n\n")[0]):
            assert json.loads(error)["error"]["code"] == "server_is_overloaded"
        assert read_to_end(body) == b""
    assert server.process.wait(10) == 0
    assert time.monotonic() - started < 4
    server.stop()
    assert any("4 requests did not finish in time" in line for line in server.log), server.log
    assert not any("Traceback" in line for line in server.log), server.log


def test_a_connection_in_use_is_not_closed_in_the_face_of_a_request(start: Start) -> None:
    server = start(30, 0)
    with connected(port_of(server)) as idle, connected(port_of(server)) as used:
        for connection in (idle, used):
            connection.sendall(GET + b"\r\n")
            read_reply(connection)
        started = time.monotonic()
        signal_and_wait(server)
        time.sleep(0.3)  # several looks at what still runs
        used.sendall(streaming(5))
        reply = read_to_end(used)
        assert "stopping" in assert_refused(reply, 503)
        assert b"\r\nconnection: close" in reply.lower()
        assert read_to_end(idle) == b""
        assert 0.9 < time.monotonic() - started < 5
    assert server.process.wait(10) == 0


def test_no_time_to_drain_is_no_complaint_where_nothing_runs(start: Start) -> None:
    server = start(0, 0)
    with connected(port_of(server)), connected(port_of(server)) as idle:
        idle.sendall(GET + b"\r\n")
        read_reply(idle)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 2
    assert not any(word in line for line in server.log for word in ("did not finish", "Cancel")), server.log


def test_a_reader_that_stalls_does_not_keep_it(start: Start) -> None:
    server = start(0.3, 0)
    with connected(port_of(server), receive_buffer=2048) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        connection.recv(1)
        time.sleep(0.3)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 4


def test_a_second_signal_ends_it_within_a_second(start: Start) -> None:
    server = start(30, 0.05)
    with connected(port_of(server)) as connection:
        connection.sendall(streaming(500))
        assert connection.recv(65536)
        signal_and_wait(server)
        started = time.monotonic()
        assert server.stop() == -signal.SIGTERM
        assert time.monotonic() - started < 1
        assert not read_to_end(connection).endswith(b"0\r\n\r\n")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port_of(server))):
        pass
