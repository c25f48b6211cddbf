"""The client: replies however they are cut, connections that are kept, lost or refused, and what it sends."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

import roseinfer.bench.http_client as http_client
from roseinfer.bench.http_client import BadResponseError, HttpClient, Response
from roseinfer.core.errors import ConfigError
from tests.bench.fake_servers import serving

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n5;name=value\r\n0\r\n\r\n\r\n0a\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)
COUNTED = b"HTTP/1.1 404 Not Found\r\nCONTENT-LENGTH: 4\r\n\r\nabcd"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def fed(*pieces: bytes) -> Response:
    """Piece i comes at time i."""
    response = Response()
    for time, piece in enumerate(pieces):
        response.feed(piece, float(time))
    return response


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (CHUNKED, 200, b"abc0\r\n\r\n0123456789"),
        (COUNTED, 404, b"abcd"),
        (INTERIM, 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", 204, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, b""),
    ],
)
def test_a_reply_may_be_cut_anywhere(raw: bytes, status: int, body: bytes) -> None:
    for cut in range(len(raw) + 1):
        response = fed(raw[:cut])
        assert response.is_complete == (cut == len(raw)), cut
        response.feed(raw[cut:], 1.0)
        assert (response.status, response.body, response.is_complete) == (status, body, True), cut
    byte_by_byte = fed(*(raw[i : i + 1] for i in range(len(raw))))
    assert (byte_by_byte.status, byte_by_byte.body) == (status, body)
    assert byte_by_byte.completed_at == len(raw) - 1


def test_a_chunk_has_the_time_of_its_last_byte() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = fed(head, b"3\r\na", b"bc\r\n2\r\nxy\r\n", b"1\r\nz\r\n", b"0\r\n\r\n")
    assert response.pieces == [(2.0, b"abc"), (2.0, b"xy"), (3.0, b"z")]
    assert response.completed_at == 4.0


def test_a_body_without_length_ends_with_the_connection() -> None:
    response = fed(b"HTTP/1.0 200 OK\r\n\r\nab", b"cd")
    assert not response.is_complete
    response.feed_end(9.0)
    assert (response.body, response.completed_at) == (b"abcd", 9.0)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 2", COUNTED[:-1], CHUNKED[:-1], CHUNKED[:80]])
def test_a_reply_that_ends_too_early_is_none(raw: bytes) -> None:
    response = fed(raw)
    with pytest.raises(BadResponseError, match="closed before the reply was complete"):
        response.feed_end(1.0)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP reply: 'SSH-2.0-OpenSSH'"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "length 'many'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "length '-1'"),
        (CHUNKED.replace(b"3\r\nabc", b"x\r\nabc"), "length 'x'"),
        (CHUNKED.replace(b"3\r\nabc", b"-3\r\nabc"), "length '-3'"),
        (CHUNKED.replace(b"3\r\nabc", b"2\r\nabc"), "longer than its size"),
        (CHUNKED[:66] + b"1" * 300, "a chunk of the reply has no size"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * (1 << 17), "head of the reply is longer"),
    ],
)
def test_what_is_no_http_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(BadResponseError, match=said):
        fed(raw)


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://127.0.0.1:8000", "GET /health HTTP/1.1", "127.0.0.1:8000"),
        ("http://h:1/", "GET /health HTTP/1.1", "h:1"),
        ("http://h:1/v1", "GET /health HTTP/1.1", "h:1"),
        ("http://h:1/api/v1/", "GET /api/health HTTP/1.1", "h:1"),
        ("http://user:secret@[::1]:80", "GET /health HTTP/1.1", "[::1]:80"),
    ],
)
def test_urls_and_the_lines_they_become(url: str, line: str, host: str) -> None:
    lines = HttpClient(url).encode("/health").decode().split("\r\n")
    assert lines[0] == line
    assert f"Host: {host}" in lines
    assert not any(text.startswith("Authorization") for text in lines)


def test_bodies_keys_and_ports() -> None:
    client = HttpClient("https://h", api_key="sesame")
    head, body = client.encode("/x", {"a": "ü"}).split(b"\r\n\r\n")
    assert b"Authorization: Bearer sesame" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert (client.host, client.port, client.is_tls) == ("h", 443, True)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://[1"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--url must be an address such as"):
        HttpClient(url)


def run(url: str, num_requests: int, *, at_once: bool = False) -> list[tuple[int, Any]]:
    async def ask() -> list[tuple[int, Any]]:
        client = HttpClient(url)
        try:
            if at_once:
                return list(await asyncio.gather(*(client.fetch("/v1/models") for _ in range(num_requests))))
            return [await client.fetch("/v1/models") for _ in range(num_requests)]
        finally:
            client.close()

    return asyncio.run(ask())


def test_a_connection_is_kept() -> None:
    with serving() as (url, role):
        assert [status for status, _ in run(url, 3)] == [200] * 3
        assert role.num_connections == 1


def test_requests_at_once_have_connections_of_their_own() -> None:
    with serving() as (url, role):
        assert [content["data"][0]["id"] for _, content in run(url, 3, at_once=True)] == ["fake"] * 3
        assert role.num_connections == 3


def test_a_kept_connection_that_is_lost_is_made_again() -> None:
    with serving(closes_after_reply=True) as (url, role):
        assert [status for status, _ in run(url, 4)] == [200] * 4
        assert role.num_connections == 4


def test_a_kept_connection_that_is_lost_with_the_next_request_on_it() -> None:
    """Which the server has not seen, so it is sent once more."""
    with serving(closes_before_reply=2) as (url, role):
        assert [status for status, _ in run(url, 5)] == [200] * 5
        assert role.num_connections == 3


def test_a_kept_connection_that_is_lost_after_it_was_chosen() -> None:
    """Its transport is gone and tells nobody: the request must not wait for a reply."""

    async def ask(url: str) -> list[int]:
        client = HttpClient(url)
        await client.fetch("/v1/models")
        [kept] = client._idle
        reply = asyncio.ensure_future(client.fetch("/v1/models"))
        asyncio.get_running_loop().call_soon(kept.connection_lost, None)  # behind the choice, before the sending
        statuses = [(await asyncio.wait_for(reply, 10))[0]]
        kept.close()
        client.close()
        return statuses

    with serving() as (url, _):
        assert asyncio.run(ask(url)) == [200]


def test_a_fresh_connection_that_is_lost_is_not_tried_again() -> None:
    with serving(closes_before_reply=0) as (url, role):
        with pytest.raises(ConnectionError, match="without a reply"):
            run(url, 1)
        assert role.num_connections == 1


def test_connections_are_made_beforehand() -> None:
    async def ask(url: str) -> None:
        client = HttpClient(url)
        await client.open(3)
        await client.open(2)
        await client.fetch("/v1/models")
        client.close()

    with serving() as (url, role):
        asyncio.run(ask(url))
        assert role.num_connections == 3


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="Connect call failed"):
        run(f"http://127.0.0.1:{port}", 1)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
def test_a_server_that_hangs_up_at_once(said: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        try:
            await HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}").fetch("/")
        finally:
            server.close()

    with pytest.raises((ConnectionError, BadResponseError), match="closed"):
        asyncio.run(ask())


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "REPLY_SECONDS", 0.05)
    silence = pytest.raises(TimeoutError, match=r"no complete reply within 0.05 seconds")
    with socket.create_server(("127.0.0.1", 0)) as listener, silence:
        run(f"http://127.0.0.1:{listener.getsockname()[1]}", 1)
