"""What the web server makes of bytes that are hardly HTTP, on a bare socket."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roseinfer.server.http_protocol import MAX_PIPELINED
from roseinfer.server.http_transport import ReplyTransport
from roseinfer.server.middleware.body_limit import MAX_BODY_BYTES
from roseinfer.server.middleware.head_limit import MAX_HEAD_BYTES
from tests.fake_model import recite
from tests.server.limited import eventually
from tests.server.live import LiveServer, StartServer
from tests.server.raw_client import (
    BODY,
    GET,
    POST,
    assert_refused,
    connected,
    exchange,
    post,
    read_reply,
    read_to_end,
)

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

NO_REQUESTS = {
    # request lines
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "word": b"hello\r\n\r\n",
    "zeros": b"\x00" * 64,
    "unknown method": b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower case method": b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "method with a tab": b"GET\t/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "http 0.9": b"GET /health\r\n\r\n",
    "http 9.9": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "http 1.2": b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n",
    "http 2.0": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "http 11": b"GET /health HTTP/11\r\nHost: x\r\n\r\n",
    "lower case http": b"GET /health http/1.1\r\nHost: x\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in the target": b"GET /hea lth HTTP/1.1\r\nHost: x\r\n\r\n",
    "nul in the target": b"GET /health\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "del in the target": b"GET /health\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes in the target": b"GET /h\xc3\xa4lth HTTP/1.1\r\nHost: x\r\n\r\n",
    "target without a slash": b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "absolute target of another host": b"GET http://y/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target of another port": b"GET http://x:81/health HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "absolute target with a user": b"GET http://u:p@x/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target without a path": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target without a host": b"GET http:///health HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target with half an address": b"GET http://[::1/health HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target with a strange port": b"GET http://x:99999999/health HTTP/1.1\r\nHost: x\r\n\r\n",
    # lines and fields
    "bare line feeds": b"GET /health HTTP/1.1\nHost: x\n\n",
    "bare line feed behind a field": b"GET /health HTTP/1.1\r\nHost: x\n\r\n",
    "bare carriage return behind a field": GET + b"A: 1\rB: 2\r\n\r\n",
    "carriage return in a value": GET + b"A: 1\r2\r\n\r\n",
    "line feed at the end": GET + b"A: 1\r\n\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "the same host twice": GET + b"Host: x\r\n\r\n",
    "space before the colon": GET + b"A : 1\r\n\r\n",
    "space before the first colon": b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
    "space before the first field": b"GET /health HTTP/1.1\r\n Host: x\r\n\r\n",
    "folded": GET + b"A: 1\r\n 2\r\n\r\n",
    "folded by a tab": GET + b"A: 1\r\n\t2\r\n\r\n",
    "folded at once": GET + b" folded\r\n\r\n",
    "no colon": GET + b"A\r\n\r\n",
    "no name": GET + b": 1\r\n\r\n",
    "space in a name": GET + b"Bad Name: 1\r\n\r\n",
    "nul in a name": GET + b"A\x00: 1\r\n\r\n",
    "bytes in a name": GET + b"\xff\xfe: 1\r\n\r\n",
    "nul in a value": GET + b"A: \x00\r\n\r\n",
    "control character in a value": GET + b"A: \x01\r\n\r\n",
    # lengths
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "signed length": POST + b"Content-Length: +36\r\n\r\n" + BODY,
    "hexadecimal length": POST + b"Content-Length: 0x24\r\n\r\n" + BODY,
    "empty length": POST + b"Content-Length: \r\n\r\n" + BODY,
    "length with a fraction": POST + b"Content-Length: 36.0\r\n\r\n" + BODY,
    "length in words": POST + b"Content-Length: ten\r\n\r\n",
    "list of lengths": POST + b"Content-Length: 36, 36\r\n\r\n" + BODY,
    "length beyond 64 bits": POST + b"Content-Length: 18446744073709551652\r\n\r\n" + BODY,
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "the same length twice": POST + b"Content-Length: 36\r\nContent-Length: 36\r\n\r\n" + BODY,
    # smuggling
    "length and chunks": POST + b"Content-Length: 36\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two fields": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 36\r\n\r\n" + BODY,
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked behind a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked with a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "empty transfer encoding": POST + b"Transfer-Encoding: \r\n\r\n",
    "chunked in HTTP/1.0": b"POST /generate HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # chunks
    "chunk size in words": CHUNKED + b"zz\r\n",
    "negative chunk size": CHUNKED + b"-1\r\n",
    "signed chunk size": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "prefixed chunk size": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "space before a chunk size": CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind a chunk size": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"1" + b"0" * 16 + b"\r\nhello\r\n0\r\n\r\n",
    "line feed behind a chunk size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "line feed behind a chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "nothing behind a chunk": CHUNKED + b"5\r\nhello0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "control character in a chunk extension": CHUNKED + b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\nA: 1\r\n 2\r\n\r\n",
    "nul in a trailer": CHUNKED + b"0\r\nA: \x00\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_REQUESTS)
def test_what_is_no_request_is_refused(server: LiveServer, name: str) -> None:
    assert_refused(exchange(server.port, NO_REQUESTS[name]))


LAST = b"Connection: close\r\n\r\n"
ODD_REQUESTS = {
    "rtsp": (b"OPTIONS /health RTSP/1.0\r\nHost: x\r\n\r\n", 405),
    "two spaces behind the target": (b"GET /health  HTTP/1.1\r\nHost: x\r\n" + LAST, 200),
    "two slashes": (b"GET //health HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "parent folders": (b"GET /health/../v1/models HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "escaped parent folders": (b"GET /health/%2e%2e/v1/models HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "escaped letter": (b"GET /he%61lth HTTP/1.1\r\nHost: x\r\n" + LAST, 200),
    "escaped nul": (b"GET /%00 HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "escaped line break": (b"GET /health%0d%0aX: HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "half an escape": (b"GET /%2 HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "wrong escape": (b"GET /%zz%u1234 HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "escapes that are no UTF-8": (b"GET /%ff%c3%28%ed%a0%80 HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "backslash": (b"GET /health\\..\\v1 HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "query": (b"GET /health?%00&=&&a=%zz#x HTTP/1.1\r\nHost: x\r\n" + LAST, 200),
    "trailing slash": (b"GET /health/ HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "other case": (b"GET /Health HTTP/1.1\r\nHost: x\r\n" + LAST, 404),
    "absolute target": (b"GET http://X:80/health HTTP/1.1\r\nHost: x:80\r\n" + LAST, 200),
    "trace": (b"TRACE /health HTTP/1.1\r\nHost: x\r\n" + LAST, 405),
    "options": (b"OPTIONS /health HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n" + LAST, 405),
    "delete": (b"DELETE /generate HTTP/1.1\r\nHost: x\r\n" + LAST, 405),
    "head of a route without one": (b"HEAD /generate HTTP/1.1\r\nHost: x\r\n" + LAST, 405),
    "empty host": (b"GET /health HTTP/1.1\r\nHost:\r\n" + LAST, 200),
    "blank lines first": (b"\r\n\r\n" + GET + LAST, 200),
    "body of a get": (GET + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", 200),
    "no body": (POST + LAST, 400),
    "no content type": (b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n" + LAST + b"{}", 400),
    "form": (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n" + LAST + b"{}",
        400,
    ),
    "compressed body": (POST + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n" + LAST + b"\x1f\x8b\x08", 400),
    "body that is no UTF-8": (POST + b"Content-Length: 2\r\n" + LAST + b"\xff\xfe", 400),
    "leading zeros": (POST + b"Content-Length: 00000000036\r\n" + LAST + BODY, 200),
    "bytes in values": (GET + b"A: \xff\xfe\r\nX-Request-Id: \xff\r\nAuthorization: \xff \xfe\r\n" + LAST, 200),
    "an expectation that nobody has": (GET + b"Expect: the-unexpected\r\n" + LAST, 200),
    "upper case chunked": (POST + b"Transfer-Encoding: Chunked\r\n" + LAST + b"24\r\n" + BODY + b"\r\n0\r\n\r\n", 200),
    "chunk extensions": (
        POST + b"Transfer-Encoding: chunked\r\n" + LAST + b'024;a="b"\r\n' + BODY + b"\r\n0\r\nA: 1\r\n\r\n",
        200,
    ),
    "more than its length": (POST + b"Content-Length: 36\r\n" + LAST + BODY + b"\r\nmore", 200),
    "a request behind the last": (GET + LAST + GET + LAST, 200),
    "many headers": (GET + b"".join(b"A%d: 1\r\n" % i for i in range(198)) + LAST, 200),
    "a range": (GET + b"Range: bytes=0-0,5-,-9\r\nIf-None-Match: *\r\n" + LAST, 200),
    "a forwarded host": (GET + b"X-Forwarded-Host: y\r\nX-Forwarded-For: ::\r\nForwarded: for=_\r\n" + LAST, 200),
}


@pytest.mark.parametrize("name", ODD_REQUESTS)
def test_what_is_odd_but_sound_is_answered_once(server: LiveServer, name: str) -> None:
    request, status = ODD_REQUESTS[name]
    reply = exchange(server.port, request)
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply
    assert reply.count(b"HTTP/1.1 ") == 1


TOKENS = [
    *(b"GET POST / /health /generate HTTP/1.1 HTTP/1.0 Host: Content-Length: Transfer-Encoding: chunked".split()),
    *(b"Connection: close upgrade Upgrade: h2c Expect: 100-continue x 0 5 36 -1 , ;".split()),
    *(b" ", b"\t", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b"%00", BODY, b"hello"),
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", GET, POST, CHUNKED, post()]),
    parts=st.lists(st.sampled_from(TOKENS) | st.binary(max_size=8), max_size=20),
)
def test_no_bytes_are_a_server_error(server: LiveServer, start: bytes, parts: list[bytes]) -> None:
    with connected(server.port) as connection:
        connection.sendall(start + b"".join(parts))
        connection.shutdown(socket.SHUT_WR)
        reply = read_to_end(connection)
    assert b"HTTP/1.1 5" not in reply
    assert reply == b"" or reply.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 100 "))


def test_http_1_0_needs_no_host_and_is_closed(server: LiveServer) -> None:
    reply = exchange(server.port, b"GET /health HTTP/1.0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert reply.endswith(b'{"status":"ok"}')


def test_a_stream_of_http_1_0_ends_with_the_connection(server: LiveServer) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 20, "stream": true}'
    head = b"POST /generate HTTP/1.0\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    reply = exchange(server.port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    head, _, text = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"transfer-encoding" not in head
    assert text.decode() == recite("a", 20)


def test_a_broken_stream_of_http_1_0_does_not_look_whole(start_server: StartServer) -> None:
    server = start_server()
    server.program.step_seconds = 0.01
    body = b'{"prompt": "a", "max_new_tokens": 400, "stop_on_eos": false, "stream": true}'
    head = b"POST /generate HTTP/1.0\r\nContent-Type: application/json\r\n"
    with connected(server.port) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(65536)
        server.engine.client.close()
        with pytest.raises(ConnectionResetError):
            read_until_reset(connection)


def read_until_reset(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def drip(connection: socket.socket, part: bytes, num_bytes: int) -> None:
    """Sends `part` over and over, each in a packet of its own, until the server does not want any more."""
    try:
        for _ in range(num_bytes // len(part)):
            connection.sendall(part)
            time.sleep(0.0002)
    except (ConnectionResetError, BrokenPipeError):
        pass


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /", b"x" * 500),
        (GET, b"X-A: " + b"x" * 500 + b"\r\n"),
        (GET + b"X-A: ", b"x" * 500),
        (b"", b"\r\n" * 250),
        (CHUNKED + b"5", b";x=" + b"y" * 500),
        (CHUNKED + b"0\r\n", b"X-A: " + b"x" * 500 + b"\r\n"),
    ],
    ids=["request line", "headers", "header", "blank lines", "chunk extensions", "trailers"],
)
def test_heads_that_never_end_are_given_up(server: LiveServer, start: bytes, part: bytes) -> None:
    with connected(server.port) as connection:
        connection.sendall(start)
        drip(connection, part, 2 * MAX_HEAD_BYTES)
        assert str(MAX_HEAD_BYTES) in assert_refused(read_to_end(connection), 431)
    assert server.client.get("/health").status_code == 200


def test_a_head_that_drips_is_read(server: LiveServer) -> None:
    with connected(server.port) as connection:
        for byte in post():
            connection.sendall(bytes([byte]))
        head, body = read_reply(connection)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection:" not in head
    assert json.loads(body) == {"text": "a" + recite("a", 3)}


def test_many_requests_on_one_connection(server: LiveServer) -> None:
    """Far more head bytes than one head may have."""
    with connected(server.port) as connection:
        for _ in range(10):
            connection.sendall(GET + b"X-A: " + b"x" * (MAX_HEAD_BYTES // 4) + b"\r\n\r\n")
            assert read_reply(connection)[1] == b'{"status":"ok"}'


def test_requests_sent_together_are_answered_in_order(server: LiveServer) -> None:
    reply = exchange(server.port, post() + GET + b"\r\n" + post() + GET + b"Connection: close\r\n\r\n")
    text = json.dumps({"text": "a" + recite("a", 3)}, separators=(",", ":"), ensure_ascii=False).encode()
    assert [reply.count(part) for part in (b"HTTP/1.1 200 OK", text, b'{"status":"ok"}')] == [4, 2, 2]
    assert reply.index(text) < reply.index(b'{"status"') < reply.rindex(text) < reply.rindex(b'{"status"')


def test_of_too_many_requests_sent_together_the_first_are_answered(server: LiveServer) -> None:
    reply = exchange(server.port, (GET + b"\r\n") * 2000)
    assert reply.count(b"HTTP/1.1 200 OK\r\n") == reply.count(b"HTTP/1.1 ") == MAX_PIPELINED + 1
    assert b"connection: close" in reply[reply.rindex(b"HTTP/1.1 ") :]


def test_an_offer_to_upgrade_is_ignored(server: LiveServer) -> None:
    """Some clients make it with every request."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with connected(server.port) as connection:
        for _ in range(3):
            connection.sendall(post(headers=upgrade))
            head, body = read_reply(connection)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert json.loads(body) == {"text": "a" + recite("a", 3)}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n",
        b"GET /health HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
    ],
    ids=["close", "HTTP/1.0"],
)
def test_an_offer_to_upgrade_the_last_request_is_ignored(server: LiveServer, head: bytes) -> None:
    for rest in (b"", GET + b"\r\n", b"\0"):
        reply = exchange(server.port, head + b"\r\n" + rest)
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert reply.endswith(b'\r\n\r\n{"status":"ok"}')
        assert reply.count(b"HTTP/1.1 ") == 1


def test_what_is_wrong_behind_an_offer_to_upgrade_is_told(server: LiveServer) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    reply = exchange(server.port, CHUNKED.removesuffix(b"\r\n") + upgrade + b"\r\nzz\r\n")
    assert "chunk size" in assert_refused(reply)


def test_many_offers_to_upgrade_in_one_packet(server: LiveServer) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    with connected(server.port) as connection:
        connection.sendall((GET + upgrade + b"\r\n") * (MAX_PIPELINED - 1) + GET + b"Connection: close\r\n\r\n")
        assert read_to_end(connection).count(b"HTTP/1.1 200 OK\r\n") == MAX_PIPELINED


@pytest.mark.parametrize("stream", [b"false", b"true"])
@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_short_reply_is_one_packet(server: LiveServer, stream: bytes, num_tokens: int) -> None:
    body = b'{"prompt": "a", "max_new_tokens": %d, "stream": %s}' % (num_tokens, stream)
    with connected(server.port) as connection:
        connection.sendall(post(body))
        reply = connection.recv(65536)
    text = recite("a", num_tokens).encode()
    if stream == b"true":
        assert reply.endswith((b"%x\r\n%s\r\n" % (len(text), text) if text else b"") + b"0\r\n\r\n")
    else:
        assert reply.endswith(b'{"text":"a%s"}' % text)


def test_a_head_does_not_wait_for_a_body_that_is_late() -> None:
    written: list[bytes] = []
    loop, transport = asyncio.new_event_loop(), Mock(write=written.append)
    holder = ReplyTransport(transport, loop)
    holder.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written == []
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert written == [b"HTTP/1.1 200 OK\r\n\r\n"]
    holder.write(b"late")
    assert written[1:] == [b"late"]


@pytest.mark.parametrize(("is_input_open", "ends"), [(False, ["close"]), (True, ["write_eof", "resume_reading"])])
def test_a_head_is_not_lost_when_the_connection_is_closed(is_input_open: bool, ends: list[str]) -> None:
    transport = Mock(is_closing=lambda: False)
    holder = ReplyTransport(transport, Mock())
    holder.is_input_open = is_input_open
    holder.write(b"HTTP/1.1 200 OK\r\n\r\n")
    holder.close()
    assert [name for name, _, _ in transport.method_calls] == ["set_write_buffer_limits", "write", *ends]


def test_garbage_behind_a_request_does_not_get_into_its_reply(start_server: StartServer) -> None:
    server = start_server()
    server.program.step_seconds = 0.02
    body = b'{"prompt": "a", "max_new_tokens": 30, "stop_on_eos": false, "stream": true}'
    with connected(server.port) as connection:
        connection.sendall(post(body))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(b"\x00garbage\r\n\r\n")
        rest = read_to_end(connection)
    assert b"HTTP/1.1" not in rest
    assert rest.endswith(b"0\r\n\r\n")


def test_garbage_behind_a_request_leaves_it_its_reply(server: LiveServer) -> None:
    reply = exchange(server.port, GET + b"\r\n" + post() + b"\x00garbage\r\n\r\n")
    assert reply.count(b"HTTP/1.1 ") == reply.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_garbage_within_a_body_is_told(server: LiveServer) -> None:
    with connected(server.port) as connection:
        connection.sendall(CHUNKED + b"5\r\nhello\r\n")
        time.sleep(0.05)
        connection.sendall(b"zz\r\n")
        assert_refused(read_to_end(connection))


def test_a_refused_body_is_swallowed_and_ends_the_connection(server: LiveServer) -> None:
    with connected(server.port) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % (2 * MAX_BODY_BYTES))
        for _ in range(2 * MAX_BODY_BYTES // 2**20):
            connection.sendall(b"x" * 2**20)
        assert_refused(read_to_end(connection), 413)


def test_a_body_that_was_not_asked_for_is_not_taken_for_a_request(server: LiveServer) -> None:
    """Who expects a 100 and gets a reply may send the body or not; we cannot know which."""
    smuggled = GET + b"\r\n"
    head = b"POST /nope HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with connected(server.port) as connection:
        connection.sendall(head % (MAX_BODY_BYTES + 1))
        head, _ = read_reply(connection)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert head.lower().count(b"connection: close") == 1
        connection.sendall(smuggled)
        assert read_to_end(connection) == b""


def test_a_body_is_asked_for(server: LiveServer) -> None:
    with connected(server.port) as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        head, body = read_reply(connection)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body) == {"text": "a" + recite("a", 3)}
        connection.sendall(GET + b"\r\n")
        assert read_reply(connection)[1] == b'{"status":"ok"}'


@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_who_closes_its_side_has_hung_up(start_server: StartServer, stream: bytes) -> None:
    server = start_server()
    server.program.step_seconds = 0.02
    body = b'{"prompt": "a", "max_new_tokens": 400, "stop_on_eos": false, "stream": %b}' % stream
    with connected(server.port) as connection:
        connection.sendall(post(body))
        eventually(lambda: server.engine.client.stats().num_running == 1)
        connection.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        assert not read_to_end(connection).endswith(b"0\r\n\r\n")
        eventually(lambda: server.engine.client.stats().num_running == 0)
        assert time.monotonic() - started < 4
