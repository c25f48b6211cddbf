"""Requests that a full engine has no room for: refused by their head, in the very words of the app."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from roseinfer.core.errors import EngineStoppedError
from roseinfer.server.app import _routers
from roseinfer.server.gate import Gate, Refusal
from roseinfer.server.generating import generating_routes
from roseinfer.server.http_protocol import MAX_AWAITED_BYTES, BoundedHttpProtocol
from roseinfer.server.http_transport import WRITE_BUFFER_BYTES, ReplyTransport
from roseinfer.server.middleware.access_log import Exchange
from tests.server.answering import TEMPLATE
from tests.server.limited import eventually, limited
from tests.server.live import LiveServer, StartServer, serving
from tests.server.raw_client import BODY, GET, POST, assert_refused, connected, exchange, post, read_reply, read_to_end

HELLO = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "Hello"},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 1},
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 1},
    "/v1/messages": {"model": "fake", "messages": HELLO, "max_tokens": 1},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 1},
}
OTHERS: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [65]},
    "/v1/chat/completions/render": {"messages": HELLO},
    "/v1/messages/count_tokens": {"model": "fake", "messages": HELLO},
}
SLOW_SWEEP = {"head_seconds": 60.0, "write_seconds": 60.0, "linger_seconds": 20.0}  # once a second
PATIENT = {**SLOW_SWEEP, "await_seconds": 10.0}
IMPATIENT = {"await_seconds": 0.1}


@contextlib.contextmanager
def full(server: LiveServer, tenant: str = "") -> Iterator[None]:
    """All places of one tenant are taken; without keys that is all there are."""
    admission = server.engine.client.admission
    admission.admit(admission.max_per_tenant, tenant)
    try:
        yield
    finally:
        for _ in range(admission.max_per_tenant):
            admission.release(tenant)


@contextlib.contextmanager
def refusing(**settings: Any) -> Iterator[int]:
    """The port of a server that refuses everybody."""
    with limited(max_running=1, max_queue=0, **settings) as server:
        admission = server.engine.client.admission
        admission.admit(1)
        try:
            yield server.port
        finally:
            admission.release()


@pytest.fixture(scope="module")
def chatty() -> Iterator[LiveServer]:
    with serving(chat_template=TEMPLATE, max_running=2, max_queue=2) as server:
        yield server


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request that the gate has seen whether it was refused there."""
    seen: list[bool] = []
    refusal = Gate.refusal

    def watched(self: Gate, scope: Any) -> Any:
        found = refusal(self, scope)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(Gate, "refusal", watched)
    return seen


def test_the_marked_routes_are_those_that_ask_for_room() -> None:
    assert {path for _, path in generating_routes(_routers())} == BODIES.keys()
    assert {method for method, _ in generating_routes(_routers())} == {"POST"}


def constant_headers(reply: httpx.Response) -> list[tuple[str, str]]:
    return [(name, value) for name, value in reply.headers.items() if name != "date"]


@pytest.mark.parametrize("path", BODIES)
def test_the_gate_says_what_the_app_would_say(
    chatty: LiveServer, monkeypatch: pytest.MonkeyPatch, refusals: list[bool], path: str
) -> None:
    headers = {"X-Request-Id": "mine"}
    with full(chatty):
        early = chatty.client.post(path, json=BODIES[path], headers=headers)
        assert refusals == [True]
        monkeypatch.setattr(Gate, "refusal", lambda self, scope: None)
        late = chatty.client.post(path, json=BODIES[path], headers=headers)
    assert early.status_code == late.status_code == 503
    assert early.content == late.content
    assert constant_headers(early) == constant_headers(late)
    assert early.headers["retry-after"] == "1"
    monkeypatch.undo()
    assert chatty.client.post(path, json=BODIES[path]).status_code == 200


@pytest.mark.parametrize("path", OTHERS)
def test_what_needs_no_room_is_answered(chatty: LiveServer, path: str) -> None:
    with full(chatty):
        assert chatty.client.post(path, json=OTHERS[path]).status_code == 200
        assert chatty.client.get("/metrics").status_code == 200
        assert chatty.client.get(path).status_code == 405
        assert chatty.client.get("/generate").status_code == 405


def test_nobody_is_looked_at_while_there_is_room(chatty: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(Gate, "_overload", fail)
    assert chatty.post(prompt="a", max_new_tokens=1).status_code == 200


def test_log_and_metrics_are_told(chatty: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges: list[Exchange] = []
    monkeypatch.setattr("roseinfer.server.gate.Refusal.end", _recording(exchanges))
    before = _num_refused(chatty)
    with full(chatty):
        assert chatty.post(prompt="a").status_code == 503
    assert _num_refused(chatty) == before + 1
    (exchange,) = exchanges
    assert (exchange.route, exchange.status, exchange.error) == ("/generate", 503, "server_is_overloaded")
    assert exchange.num_bytes > 0
    assert exchange.is_complete
    assert 0 < exchange.seconds < 10


def _recording(exchanges: list[Exchange]) -> Any:
    end = Refusal.end

    def recording(self: Refusal) -> None:
        end(self)
        exchanges.append(self._exchange)

    return recording


def _num_refused(server: LiveServer) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if 'reason="queue_full"' in line and not line.startswith("#")]
    return float(line.rpartition(" ")[2])


# -- who comes first --------------------------------------------------------------------------------------------------


def test_keys_and_hosts_come_before_room(start_server: StartServer, refusals: list[bool]) -> None:
    server = start_server(api_keys=["one", "two"], max_running=2, max_queue=2)
    with full(server):
        assert server.post(prompt="a").status_code == 401
        assert server.client.post("/generate", json={}, headers={"Authorization": "Bearer x"}).status_code == 401
        assert refusals == [False, False]
        for headers in ({"Authorization": "Bearer one"}, {"X-Api-Key": "two"}):
            assert server.client.post("/generate", json={}, headers=headers).status_code == 503


def test_a_host_that_is_not_ours_is_told_so() -> None:
    with refusing(app={"allowed_hosts": ["x"]}) as port:
        assert exchange(port, post(headers=b"Connection: close\r\n")).startswith(b"HTTP/1.1 503 ")
        strange = post(headers=b"Connection: close\r\n").replace(b"Host: x", b"Host: y")
        assert exchange(port, strange).startswith(b"HTTP/1.1 403 ")


def test_a_tenant_that_has_its_share_is_refused_alone(start_server: StartServer, refusals: list[bool]) -> None:
    server = start_server(api_keys=["one", "two"], max_running=2, max_queue=2)
    admission, tenants = server.engine.client.admission, []
    check_room = server.engine.client.check_room
    server.engine.client.check_room = lambda count=1, tenant="": tenants.append(tenant) or check_room(count, tenant)
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    server.client.post("/generate", json={"prompt": "a"}, headers=one)
    admission.max_per_tenant = 3
    with full(server, tenants[0]):
        refused = server.client.post("/generate", json={"prompt": "a"}, headers=one)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.post("/generate", json={"prompt": "a"}, headers=two).status_code == 200
    assert refusals == [False, True, False]


def test_an_engine_that_is_gone_is_no_overload(chatty: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> None:
        raise EngineStoppedError("the engine is gone")

    with full(chatty):
        monkeypatch.setattr(chatty.engine.client, "check_alive", stopped)
        assert chatty.post(prompt="a").json()["error"]["message"] == "the engine is gone"


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with refusing(**PATIENT) as port:
        yield port


def assert_overloaded(head: bytes, body: bytes, *, is_last: bool) -> None:
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert (b"\r\nconnection: close" in head) == is_last
    assert json.loads(body)["error"]["code"] == "server_is_overloaded"


def test_a_refused_caller_keeps_its_connection(port: int) -> None:
    with connected(port) as connection:
        for _ in range(3):
            connection.sendall(post())
            assert_overloaded(*read_reply(connection), is_last=False)


def test_refusals_leave_no_garbage(port: int) -> None:
    """What waits for the collector is memory that grows as long as the overload lasts."""
    with connected(port) as connection:
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                connection.sendall(post())
                read_reply(connection)
            assert gc.collect() < 100
        finally:
            gc.enable()


def test_a_small_body_may_come_behind_its_head() -> None:
    """However often connections are looked at meanwhile."""
    with refusing(await_seconds=10.0, linger_seconds=0.04) as port, connected(port) as connection:
        for _ in range(2):
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(BODY))
            time.sleep(0.05)
            connection.sendall(BODY[:5])
            time.sleep(0.05)
            connection.sendall(BODY[5:])
            assert_overloaded(*read_reply(connection), is_last=False)


LARGE = MAX_AWAITED_BYTES + 1


@pytest.mark.parametrize(
    "start",
    [
        POST + b"Content-Length: %d\r\n\r\n{" % LARGE,
        POST + b"Transfer-Encoding: chunked\r\n\r\n24\r\n",
        POST + b"Expect: 100-continue\r\nContent-Length: 36\r\n\r\n",
    ],
)
def test_no_other_body_is_waited_for(port: int, start: bytes) -> None:
    with connected(port) as connection:
        started_at = time.monotonic()
        connection.sendall(start)
        reply = read_to_end(connection)
        assert time.monotonic() - started_at < 1
    head, _, body = reply.partition(b"\r\n\r\n")
    assert_overloaded(head, body, is_last=True)


def test_a_large_body_that_is_here_does_no_harm(port: int) -> None:
    body = b" " * LARGE
    with connected(port) as connection:
        connection.sendall(post(body))
        head, content = read_reply(connection)
        assert_overloaded(head, content, is_last=b"connection: close" in head)


def test_a_small_body_that_does_not_come_is_not_waited_for() -> None:
    with refusing(**IMPATIENT) as port:
        assert_hung_up_on(port)


def assert_hung_up_on(port: int) -> None:
    """For a small body that does not come."""
    reply = exchange(port, POST + b"Content-Length: 36\r\n\r\n{")
    assert reply.count(b"HTTP/1.1 ") == 1
    head, _, body = reply.partition(b"\r\n\r\n")
    assert_overloaded(head, body, is_last=True)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_that_comes_slowly_is_swallowed(is_chunked: bool) -> None:
    """Whoever reads only when it has sent everything is to find its answer."""
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % (12 * LARGE)
    part = b"%x\r\n%b\r\n" % (LARGE, b" " * LARGE) if is_chunked else b" " * LARGE
    with refusing(linger_seconds=0.3) as port, connected(port) as connection:
        connection.sendall(POST + framing + b"\r\n\r\n")
        for _ in range(12):
            time.sleep(0.06)
            connection.sendall(part)
        assert_overloaded(*read_reply(connection), is_last=True)


def test_a_large_body_is_not_swallowed_for_ever() -> None:
    with refusing(linger_seconds=0.1, body_seconds=0.3) as port, connected(port) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % LARGE)
        with pytest.raises(ConnectionError):
            send_slowly(connection, b" " * 500)


def send_slowly(connection: socket.socket, data: bytes) -> None:
    for start in range(len(data)):
        connection.sendall(data[start : start + 1])
        time.sleep(0.02)


def test_a_request_that_has_waited_for_another_is_refused_in_its_turn(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to look at its connection first."""
    monkeypatch.setattr(BoundedHttpProtocol, "check", lambda self, now: None)
    reply = exchange(port, GET + b"\r\n" + POST + b"Transfer-Encoding: chunked\r\n\r\n24\r\n")
    assert reply.startswith(b"HTTP/1.1 200 ")
    head, _, body = reply[reply.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert_overloaded(head, body, is_last=True)


def test_a_refused_request_that_breaks_off_is_told_so(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        for _ in range(3):  # which must not reset the connection
            time.sleep(0.02)
            connection.sendall(b"more")
        assert_refused(read_to_end(connection), 400)


@pytest.mark.parametrize("behind", [post(), b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_requests_behind_it_are_answered_in_their_turn(port: int, behind: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(post() + behind + post())
        replies = [read_reply_of(connection) for _ in range(3)]
    statuses = [503, 503 if behind == post() else 200, 503]
    assert [int(head[9:12]) for head, _ in replies] == statuses


def read_reply_of(connection: socket.socket) -> tuple[bytes, bytes]:
    """One reply of several: no byte of the next is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return head, body


def test_nothing_runs_behind_the_last(port: int) -> None:
    reply = exchange(port, post(headers=b"Connection: close\r\n") + post())
    assert reply.count(b"HTTP/1.1 ") == 1


def test_what_is_no_request_behind_it_ends_the_connection(port: int) -> None:
    reply = exchange(port, post() + b"hello\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert reply.count(b"\r\nconnection: close") == 1


def test_http_1_0_is_refused_and_hung_up_on(port: int) -> None:
    reply = exchange(port, post().replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert_overloaded(head, body, is_last=True)


def test_who_hangs_up_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges: list[Exchange] = []
    monkeypatch.setattr("roseinfer.server.gate.Refusal.end", _recording(exchanges))
    with refusing(**PATIENT) as port:
        with connected(port) as connection:
            connection.sendall(POST + b"Content-Length: 36\r\n\r\n{")
            time.sleep(0.05)
        eventually(lambda: exchanges)
    assert [each.status for each in exchanges] == [499]


CUT_OFF = POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (post(headers=b"Connection: close\r\n"), [503]),
        (post() + post(headers=b"Connection: close\r\n"), [503, 503]),
        (POST + b"Content-Length: 36\r\n\r\n{", [503]),
        (POST + b"Content-Length: %d\r\n\r\n{" % LARGE, [503]),
        (CUT_OFF, [400]),
        (post() + CUT_OFF, [499]),
        (post() + b"hello\r\n\r\n", [503]),
    ],
    ids=["whole", "two", "small and late", "large", "broken", "broken behind another", "garbage behind it"],
)
def test_the_log_has_one_line_of_each(
    log_lines: list[dict[str, Any]], request_bytes: bytes, statuses: list[int]
) -> None:
    with refusing(**IMPATIENT) as port:
        exchange(port, request_bytes)
    assert [line["status"] for line in log_lines] == statuses
    assert {line["path"] for line in log_lines} == {"/generate"}


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The access log, parsed."""
    lines: list[dict[str, Any]] = []
    handler, logger = logging.Handler(), logging.getLogger("roseinfer.access")
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(json.loads(record.getMessage())))
    caplog.set_level(logging.INFO, logger.name)
    for name, value in {"handlers": [handler], "disabled": False, "propagate": False}.items():
        monkeypatch.setattr(logger, name, value)
    return lines


def test_a_log_that_fails_costs_no_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Exchange] = []

    def fail_first(exchange: Exchange) -> None:
        calls.append(exchange)
        if len(calls) == 1:
            raise OSError("no space left")

    monkeypatch.setattr("roseinfer.server.app.write", fail_first)
    with refusing(**IMPATIENT) as port:
        for _ in range(3):
            assert_hung_up_on(port)
    assert [call.status for call in calls] == [503] * 3
    (record,) = [record for record in caplog.records if record.name == "roseinfer"]
    assert "no space left" in str(record.exc_info)


def test_refusals_do_not_pile_up_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    write_reply = ReplyTransport.write_reply

    def watched(self: ReplyTransport, data: bytes) -> None:
        write_reply(self, data)
        held.append(self.get_write_buffer_size())

    monkeypatch.setattr(ReplyTransport, "write_reply", watched)
    with (
        refusing(**SLOW_SWEEP) as port,
        connected(port, receive_buffer=2048) as connection,
        contextlib.suppress(ConnectionError),  # too many requests at once, in the end
    ):
        for _ in range(400):
            connection.sendall(post())
            time.sleep(0.003)
    assert 0 < max(held) < 2 * WRITE_BUFFER_BYTES
