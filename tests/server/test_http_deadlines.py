"""Callers that take their time, one way or another, and more of them than there is room for."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time

import httpx
import pytest

from roseinfer.server import open_files
from roseinfer.server.http_limits import HttpLimits
from roseinfer.server.http_protocol import MAX_LINGERING
from roseinfer.server.http_transport import SEND_BUFFER_BYTES, WRITE_BUFFER_BYTES, ReplyTransport
from roseinfer.server.open_files import make_room_for
from tests.fake_model import recite
from tests.server.limited import LimitedServer, eventually, limited
from tests.server.raw_client import GET, POST, assert_refused, connected, exchange, post, read_reply, read_to_end

SOON = 0.3
STREAM = b'{"prompt": "a", "max_new_tokens": 400, "stop_on_eos": false, "stream": true}'


def drip_until_closed(connection: socket.socket, data: bytes, pause: float = 0.02) -> tuple[bytes, float]:
    """Sends byte by byte. Returns what came back and after how many seconds it did."""
    started = time.monotonic()
    connection.settimeout(pause)
    for start in range(len(data)):
        connection.sendall(data[start : start + 1])
        with contextlib.suppress(TimeoutError):
            first = connection.recv(65536)
            seconds = time.monotonic() - started
            connection.settimeout(10)
            return first + (read_to_end(connection) if first else b""), seconds
    raise AssertionError("the server listens to the end")


def send_slowly(connection: socket.socket, data: bytes) -> None:
    for start in range(len(data)):
        connection.sendall(data[start : start + 1])
        time.sleep(0.01)


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"], ids=["first", "second"])
def test_a_head_that_drips_has_a_deadline(before: bytes) -> None:
    with limited(head_seconds=SOON) as live, connected(live.port) as connection:
        if before:
            connection.sendall(before)
            read_reply(connection)
            time.sleep(2 * SOON)  # idle, which is another deadline
        reply, seconds = drip_until_closed(connection, GET + b"A: " + b"x" * 500)
        assert "0.3 seconds" in assert_refused(reply, 408)
        assert 0.9 * SOON < seconds < 10 * SOON


def test_who_says_nothing_is_not_waited_for() -> None:
    with limited(head_seconds=SOON) as live, connected(live.port) as connection:
        started = time.monotonic()
        assert read_to_end(connection) == b""
        assert 0.9 * SOON < time.monotonic() - started < 10 * SOON
        eventually(lambda: live.num_connections == 0)


def test_blank_lines_are_not_something() -> None:
    with limited(head_seconds=SOON) as live, connected(live.port) as connection:
        reply, seconds = drip_until_closed(connection, b"\r\n" * 250)
        assert_refused(reply, 408)
        assert seconds < 10 * SOON


def test_blank_lines_keep_no_connection_alive() -> None:
    with limited(keep_alive_seconds=1) as live, connected(live.port) as connection:
        connection.sendall(GET + b"\r\n")
        read_reply(connection)
        reply, seconds = drip_until_closed(connection, b"\r\n" * 250)
        assert reply == b""
        assert 0.9 < seconds < 5


def test_idle_connections_are_kept_and_then_closed() -> None:
    with limited(head_seconds=SOON, keep_alive_seconds=1) as live, connected(live.port) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            read_reply(connection)
            time.sleep(2 * SOON)
        started = time.monotonic()
        assert read_to_end(connection) == b""
        assert time.monotonic() - started < 5


def test_an_answer_may_take_its_time() -> None:
    """Longer than all deadlines, with the next head begun meanwhile."""
    with limited(step_seconds=0.02, head_seconds=SOON, write_seconds=SOON) as live, connected(live.port) as connection:
        body = b'{"prompt": "a", "max_new_tokens": 60, "stop_on_eos": false}'
        connection.sendall(post(body) + GET)
        assert json.loads(read_reply(connection)[1])["text"] == "a" + recite("a", 60, stop_on_eos=False)
        connection.sendall(b"\r\n")
        assert read_reply(connection)[1] == b'{"status":"ok"}'


@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
def test_a_body_that_drips_has_a_deadline(framing: bytes) -> None:
    with (
        limited(linger_seconds=SOON, app={"body_seconds": SOON}) as live,
        connected(live.port) as connection,
    ):
        connection.sendall(POST + framing)
        reply, seconds = drip_until_closed(connection, b" " * 500)
        assert "0.3 seconds" in assert_refused(reply, 408)
        assert 0.9 * SOON < seconds < 10 * SOON
        eventually(lambda: live.num_connections == 0)


def test_a_refused_body_that_drips_has_one_too() -> None:
    with (
        limited(linger_seconds=SOON, body_seconds=SOON, app={"api_keys": ["sesame"]}) as live,
        connected(live.port) as connection,
    ):
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        assert_refused(read_to_end(connection), 401)
        with pytest.raises(ConnectionError):
            send_slowly(connection, b" " * 500)
        assert live.num_connections == 0


def test_many_drippers_cost_others_nothing() -> None:
    with limited(head_seconds=1.0, app={"body_seconds": 1.0}) as live, contextlib.ExitStack() as stack:
        heads = [stack.enter_context(connected(live.port)) for _ in range(100)]
        bodies = [stack.enter_context(connected(live.port)) for _ in range(50)]
        for connection in heads:
            connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        for connection in bodies:
            connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        with httpx.Client(base_url=f"http://127.0.0.1:{live.port}", timeout=10) as client:
            started = time.monotonic()
            assert client.get("/health").status_code == 200
            assert time.monotonic() - started < 1
        for connection in [*heads, *bodies]:
            assert_refused(read_to_end(connection), 408)
    assert live.num_connections == 0


def test_a_reader_that_stalls_is_dropped_and_its_request_ended() -> None:
    with limited(write_seconds=SOON, linger_seconds=SOON) as live:
        with connected(live.port, receive_buffer=2048) as connection:
            body = b'{"prompt": "a", "max_tokens": 500, "ignore_eos": true, "logprobs": 5, "n": 16, "stream": true}'
            live.program.step_seconds = 0.002
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            eventually(lambda: live.num_live == 16)
            eventually(lambda: live.num_connections == 0)
            eventually(lambda: live.num_live == 0)
            with pytest.raises(ConnectionResetError):
                _read_to_the_last(connection)
        assert b"200 OK" in exchange(live.port, GET + b"Connection: close\r\n\r\n")


def _read_to_the_last(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def test_a_reply_that_is_made_waits_no_longer_for_its_reader() -> None:
    with (
        limited(write_seconds=SOON) as live,
        connected(live.port, receive_buffer=2048) as connection,
    ):
        connection.sendall((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * 8)
        eventually(lambda: live.num_connections == 1)
        eventually(lambda: live.num_connections == 0)


def test_a_reader_that_is_slow_is_waited_for() -> None:
    with (
        limited(write_seconds=SOON) as live,
        connected(live.port, receive_buffer=2048) as connection,
    ):
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 4 + GET + b"Connection: close\r\n\r\n")
        received = b""
        started = time.monotonic()
        while data := connection.recv(8192):
            received += data
            time.sleep(0.01)
        assert time.monotonic() - started > 2 * SOON
        assert received.endswith(b'{"status":"ok"}')


def test_what_waits_for_a_reader_that_stalls_is_little() -> None:
    with limited(write_seconds=60) as live, connected(live.port, receive_buffer=2048) as connection:
        connection.sendall((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * 60)
        eventually(lambda: _waiting_bytes(live) > 0)
        time.sleep(0.1)
        one = len(httpx.get(f"http://127.0.0.1:{live.port}/openapi.json").content)
        assert _waiting_bytes(live) <= WRITE_BUFFER_BYTES + one + 1024
        for transport in _transports(live):
            kernel = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert kernel <= 2 * SEND_BUFFER_BYTES


def _waiting_bytes(live: LimitedServer) -> int:
    return sum(transport.get_write_buffer_size() for transport in _transports(live))


def _transports(live: LimitedServer) -> list[ReplyTransport]:
    return [each.transport for each in list(live.server.server_state.connections)]  # type: ignore[misc]


# -- more connections than there is room for ----------------------------------------------------------------


def test_one_connection_too_many_is_told_so() -> None:
    with limited(max_connections=3, linger_seconds=SOON) as live, contextlib.ExitStack() as stack:
        taken = [stack.enter_context(connected(live.port)) for _ in range(3)]
        eventually(lambda: live.num_connections == 3)
        for _ in range(3):
            reply = exchange(live.port, GET + b"\r\n")
            assert "too many connections" in assert_refused(reply, 503)
            assert b"\r\nretry-after: 1\r\n" in reply
        for connection in taken:
            connection.sendall(GET + b"\r\n")
            assert read_reply(connection)[1] == b'{"status":"ok"}'
        taken[0].close()
        eventually(lambda: live.num_connections == 2)
        assert b"200 OK" in exchange(live.port, GET + b"Connection: close\r\n\r\n")


def test_a_crowd_of_refused_connections_is_not_lingered_for() -> None:
    count = MAX_LINGERING + 50
    with limited(max_connections=1, linger_seconds=60) as live, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(live.port)) for _ in range(count)]
        for connection in connections[1:]:
            assert_refused(read_to_end(connection), 503)
        eventually(lambda: live.num_connections <= MAX_LINGERING + 1)


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "room", "raised"),
    [
        (1024, 20_000, 4096, 4096, 6400),
        (20_000, 20_000, 4096, 4096, 20_000),
        (1024, 4096, 4096, 2048, 4096),
        (1024, 1024, 4096, 512, 1024),
        (1024, resource.RLIM_INFINITY, 4096, 4096, 6400),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, 4096, resource.RLIM_INFINITY),
        (20_000, 20_000, 1_000_000, 17_696, 20_000),
    ],
)
def test_the_limit_on_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, asked: int, room: int, raised: int
) -> None:
    limit = [soft, hard]
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: tuple(limit))
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda _, new: limit.__setitem__(slice(None), new))
    assert make_room_for(asked) == room
    assert limit == [raised, hard]


def test_a_limit_on_open_files_that_cannot_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, new: tuple[int, int]) -> None:
        raise ValueError

    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(open_files.resource, "setrlimit", refuse)
    assert make_room_for(4096) == 512


def test_deadlines_are_looked_at_often_enough() -> None:
    assert HttpLimits().sweep_seconds == 1.0
    assert HttpLimits(head_seconds=0.4).sweep_seconds == pytest.approx(0.1)


def test_hundreds_of_streams_at_once() -> None:
    with limited(max_queue=2000, step_seconds=0.001) as live, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(live.port)) for _ in range(300)]
        body = b'{"prompt": "a", "max_new_tokens": 5, "stop_on_eos": false, "stream": true}'
        for connection in connections:
            connection.sendall(post(body, headers=b"Connection: close\r\n"))
        for connection in connections:
            reply = read_to_end(connection)
            assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
            assert reply.endswith(b"0\r\n\r\n")
