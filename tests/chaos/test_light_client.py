"""The client that overload is measured with: what it takes for an answer, and how it uses connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.client import Stream
from tests.chaos.light_client import Answer, LightClient
from tests.chaos.storm import is_refused, is_whole, retry_after

REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nfull"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def token(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"text": text, "finish_reason": finish_reason}], "usage": None})


def event(fields: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


USAGE = event({"choices": [], "usage": {"completion_tokens": 2}})
EVENTS = [token("a"), token("b", "length"), USAGE, DONE]


def stream_of(events: Sequence[bytes]) -> bytes:
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in events) + b"0\r\n\r\n"


WHOLE = stream_of(EVENTS)


class Server:
    """Answers each request with the next reply, piece by piece; None hangs up."""

    def __init__(self, replies: Sequence[Sequence[bytes | None]]) -> None:
        self.num_connections = 0
        self._replies = iter(replies)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await reader.readexactly(len(REQUEST)):
                for piece in next(self._replies):
                    if piece is None:
                        return
                    writer.write(piece)
                    await asyncio.sleep(0.002)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run(
    replies: Sequence[Sequence[bytes | None]], use: Callable[[LightClient], Awaitable[None]]
) -> tuple[int, Streams]:
    """How many connections were made, and what came of the requests."""

    async def main() -> tuple[int, Streams]:
        server = Server(replies)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        client = LightClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        try:
            await use(client)
        finally:
            await client.close()
            listener.close()
            await asyncio.sleep(0.02)
        assert client.num_open == 0
        return server.num_connections, [answer.as_stream() for answer in client.answers]

    return asyncio.run(main())


Streams = list[Stream]


async def ask_thrice(client: LightClient) -> None:
    for _ in range(3):
        await client.ask(REQUEST)


def test_answers_and_refusals_leave_the_connection_to_the_next() -> None:
    num_connections, streams = run([[WHOLE], [REFUSED], [WHOLE]], ask_thrice)
    assert num_connections == 1
    assert [is_whole(stream) for stream in streams] == [True, False, True]
    assert [is_refused(stream) for stream in streams] == [False, True, False]
    assert retry_after(streams[1]) == 7
    assert streams[0].num_tokens == 2
    assert all(stream.started_at < stream.chunk_times[0] <= stream.ended_at for stream in streams)


def test_requests_at_once_have_connections_of_their_own() -> None:
    async def use(client: LightClient) -> None:
        for _ in range(3):
            client.send(REQUEST)
        assert client.num_open == 3
        await client.settle(10)

    num_connections, streams = run([[WHOLE]] * 3, use)
    assert num_connections == 3
    assert all(map(is_whole, streams))


def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    last = REFUSED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    num_connections, streams = run([[last]] * 3, ask_thrice)
    assert num_connections == 3
    assert all(map(is_refused, streams))


def test_a_kept_connection_that_is_lost_is_no_failure_but_counted() -> None:
    async def use(client: LightClient) -> None:
        for num_resent in (0, 1, 1, 2):
            await client.ask(REQUEST)
            assert client.num_resent == num_resent

    num_connections, streams = run([[WHOLE], [None], [WHOLE], [WHOLE], [None], [WHOLE]], use)
    assert num_connections == 3
    assert all(map(is_whole, streams))


@pytest.mark.parametrize("piece", [b"", HEAD, WHOLE[:-1], REFUSED[:-1]])
def test_a_reply_that_breaks_off_is_broken(piece: bytes) -> None:
    async def use(client: LightClient) -> None:
        await client.ask(REQUEST)
        assert client.num_resent == 0

    _, (stream,) = run([[piece, None]], use)
    assert stream.error is not None
    assert "hung up" in stream.error
    assert not is_whole(stream)


def test_nobody_is_waited_for_without_end() -> None:
    async def use(client: LightClient) -> None:
        client.send(REQUEST)
        await client.settle(0.1)

    _, (stream,) = run([[HEAD]], use)
    assert stream.error == "no answer within 0.1 seconds"
    assert not is_whole(stream)


def test_a_server_that_is_not_there_is_an_error() -> None:
    async def main() -> Stream:
        client = LightClient("http://127.0.0.1:1")
        await client.ask(REQUEST)
        await client.close()
        return client.answers[0].as_stream()

    stream = asyncio.run(main())
    assert stream.status == 0
    assert "Connect" in str(stream.error)


def read(reply: bytes, borders: Sequence[int] = ()) -> Stream:
    answer = Answer(REQUEST)
    ends = sorted({border % len(reply) for border in borders} | {len(reply)})
    for moment, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        answer.pieces.append((float(moment), reply[start:end]))
    answer.end()
    return answer.as_stream()


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_pieces_make_no_difference(borders: list[int]) -> None:
    stream = read(WHOLE, borders)
    assert is_whole(stream)
    assert stream.num_tokens == 2
    assert len(stream.chunk_times) == len(EVENTS)
    assert stream.chunk_times == sorted(stream.chunk_times)


@pytest.mark.parametrize(
    "events",
    [
        EVENTS[:-1],  # no [DONE]
        [*EVENTS[:2], DONE],  # no usage
        [EVENTS[0], USAGE, DONE],  # no reason to end
        [*EVENTS[:-1], event({"error": {"message": "oh"}}), DONE],
        [*EVENTS, b"data: {}\n\n"],
        [b"event: a\n\n", *EVENTS],
        [b"data: {\n\n", *EVENTS],
        [b"data: 3\n\n", *EVENTS],
        [b"data: {}\n\n", *EVENTS],
        [*EVENTS, b"more"],
        [b""],
    ],
)
def test_what_is_not_whole_is_broken(events: list[bytes]) -> None:
    stream = read(stream_of(events))
    assert stream.error is not None
    assert not is_whole(stream)


@pytest.mark.parametrize("reply", [b"hello\r\n\r\n0\r\n\r\n", WHOLE[:-5], HEAD + b"zz\r\n"])
def test_what_is_no_reply_is_broken(reply: bytes) -> None:
    assert not is_whole(read(reply))
    assert read(reply).error is not None
