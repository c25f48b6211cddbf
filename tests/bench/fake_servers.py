"""Servers that play a role: OpenAI's completions or our /generate, at a known pace and with known counts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass
class Role:
    """What the server does; `bodies` and `received_at` are what it was asked by POST, and when."""

    protocol: str = "completions"  # or generate, or none
    first_seconds: float = 0.0
    gap_seconds: float = 0.0
    model: str | None = "fake"
    takes_ids: bool = True
    has_tokenize: bool = True
    has_usage: bool = True
    bos: tuple[int, ...] = ()
    num_cached: int | None = None
    api_key: str | None = None
    closes_after_reply: bool = False
    closes_before_reply: int | None = None  # at this request of a connection
    fail_with: int | None = None  # the status of every streamed completion but those of one token
    cut_after: int | None = None  # chunks, then the connection is gone
    bodies: list[tuple[str, Body]] = field(default_factory=list)
    received_at: list[float] = field(default_factory=list)
    num_connections: int = 0
    max_running: int = 0
    num_running: int = 0

    def of_path(self, path: str) -> list[Body]:
        return [body for at, body in self.bodies if at == path]

    def streamed(self) -> list[Body]:
        """Completions that were measured: those of more than one token."""
        return [body for _, body in self.bodies if body.get("max_tokens", body.get("max_new_tokens", 1)) > 1]


def tokenize(text: str) -> list[int]:
    """A token per word: its length and first letter, so that equal texts have equal ids."""
    return [100 + 26 * len(word) + ord(word[0]) - ord("a") for word in text.split()]


@contextlib.contextmanager
def serving(role: Role | None = None, **changes: Any) -> Iterator[tuple[str, Role]]:
    """(url, role) of a server on a thread of its own."""
    role = role or Role(**changes)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(_start(role), loop).result(10)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", role
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _start(role: Role) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        role.num_connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            for index in itertools.count():
                if not await _Exchange(role, reader, writer).run(is_last=index == role.closes_before_reply):
                    break
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # the transports close


class _Exchange:
    """One request and its reply."""

    def __init__(self, role: Role, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.role = role
        self.reader = reader
        self.writer = writer

    async def run(self, *, is_last: bool) -> bool:
        """True if the connection is kept; without a reply if this is its last request."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        if is_last:
            return False
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        method, path, _ = head.split(" ", 2)
        body = json.loads(await self.reader.readexactly(int(headers.get("content-length", 0))) or b"null")
        if method == "POST":
            self.role.bodies.append((path, body))
            self.role.received_at.append(time.perf_counter())
        if self.role.api_key and headers.get("authorization") != f"Bearer {self.role.api_key}":
            self.send_json(401, {"error": {"message": "no key"}})
        else:
            await self.answer(method, path, body)
        await self.writer.drain()
        return not self.role.closes_after_reply

    async def answer(self, method: str, path: str, body: Body) -> None:
        role = self.role
        if (method, path) == ("GET", "/v1/models") and role.model:
            self.send_json(200, {"object": "list", "data": [{"id": role.model}]})
        elif (method, path) == ("POST", "/tokenize") and role.has_tokenize:
            bos = role.bos if body["add_special"] else ()
            self.send_json(200, {"tokens": [*bos, *tokenize(body["content"])]})
        elif (method, path) == ("POST", "/v1/completions") and role.protocol == "completions":
            await self.counted(self.complete(body))
        elif (method, path) == ("POST", "/generate") and role.protocol == "generate":
            await self.counted(self.generate(body))
        else:
            self.send_json(404, {"error": {"message": f"no {path}"}})

    async def counted(self, work: Any) -> None:
        role = self.role
        role.num_running += 1
        role.max_running = max(role.max_running, role.num_running)
        try:
            await work
        finally:
            role.num_running -= 1

    async def complete(self, body: Body) -> None:
        role, prompt, num_tokens = self.role, body["prompt"], body["max_tokens"]
        if isinstance(prompt, list) and not role.takes_ids:
            self.send_json(400, {"error": {"message": "prompt must be text"}})
            return
        if role.fail_with and num_tokens > 1:
            self.send_json(role.fail_with, {"error": {"message": "too busy", "type": "x"}})
            return
        self.send_head("text/event-stream")
        for index in range(num_tokens):
            if role.cut_after == index:
                raise ConnectionError
            await self.pace(index)
            reason = "length" if index == num_tokens - 1 else None
            self.send_event({"choices": [{"index": 0, "text": f" w{index}", "finish_reason": reason}], "usage": None})
        if role.has_usage:
            self.send_event({"choices": [], "usage": self.usage(prompt, num_tokens)})
        self.send_chunk(b"data: [DONE]\n\n")
        self.send_chunk(b"")

    def usage(self, prompt: Any, num_tokens: int) -> Body:
        num_input = len(prompt) if isinstance(prompt, list) else len(self.role.bos) + len(tokenize(prompt))
        usage: Body = {"prompt_tokens": num_input, "completion_tokens": num_tokens}
        if self.role.num_cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.role.num_cached}
        return usage

    async def generate(self, body: Body) -> None:
        """Every third token has no text of its own."""
        self.send_head("text/plain; charset=utf-8")
        for index in range(body["max_new_tokens"]):
            await self.pace(index)
            if index % 3 != 1:
                self.send_chunk(f" w{index}".encode())
        self.send_chunk(b"")

    async def pace(self, index: int) -> None:
        await asyncio.sleep(self.role.gap_seconds if index else self.role.first_seconds)

    def send_json(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    def send_head(self, content_type: str) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())

    def send_event(self, event: object) -> None:
        self.send_chunk(f"data: {json.dumps(event)}\n\n".encode())

    def send_chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
