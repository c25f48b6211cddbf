"""One line of JSON about each request when it is over, and word of it to whoever counts requests."""

from __future__ import annotations

import json
import logging
import numbers
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roseinfer.core.metrics import RequestRecord
from roseinfer.server.log_handler import LineHandler
from roseinfer.server.middleware.auth import OPEN_PATHS

logger = logging.getLogger("roseinfer.access")

CLIENT_CLOSED_REQUEST = 499  # nginx's
QUIET_PATHS = OPEN_PATHS | {"/metrics"}  # machines ask for them every few seconds
MAX_TEXT = 256  # characters of whatever a caller chose
MAX_ITEMS = 16
MAX_ERROR_BODY = 4096


def _plain(value: object) -> int | float | str:
    """For what no encoder knows: a number, NumPy's too, stays one."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


_encode_fast = msgspec.json.Encoder(enc_hook=_plain).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), default=_plain).encode


@dataclass(slots=True)
class Exchange:
    """One HTTP request and what became of it."""

    scope: Scope
    started_at: float  # of `time.perf_counter`
    status: int = 0  # 0 = nothing was sent
    num_bytes: int = 0  # of the reply's body
    seconds: float = 0.0
    is_complete: bool = False
    error: str | None = None  # its code

    @property
    def facts(self) -> dict[str, Any]:
        """What the route had to say of it, see `describe`."""
        facts: dict[str, Any] = self.scope.get("state", {}).get("access", {})
        return facts

    @property
    def route(self) -> str | None:
        """The path as it was declared; None where no route was reached."""
        return getattr(self.scope.get("route"), "path", None)

    def take(self, message: Message) -> None:
        """Something that is sent."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        body = message.get("body", b"")
        self.num_bytes += len(body)
        self.is_complete = not message.get("more_body", False)
        if self.status >= 400 and self.is_complete:
            self.error = _error_code(body)

    def end(self, has_failed: bool) -> None:
        """A reply that was cut off is no success, whatever its status line said; the caller did it if nobody else."""
        self.seconds = time.perf_counter() - self.started_at
        self.error = self.error or self.facts.get("error")
        if not self.is_complete:
            self.status = 500 if has_failed or self.error else CLIENT_CLOSED_REQUEST


Listener = Callable[[Exchange], None]


class AccessLogMiddleware:
    """The outermost: it sees what the caller sees. `listeners` are told of each request; `write` logs it."""

    def __init__(self, app: ASGIApp, listeners: Sequence[Listener]) -> None:
        self.app = app
        self._listeners = listeners

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, time.perf_counter())

        async def watched_send(message: Message) -> None:
            await send(message)
            exchange.take(message)

        has_failed = True
        try:
            await self.app(scope, receive, watched_send)
            has_failed = False
        finally:
            exchange.end(has_failed)
            for listener in self._listeners:
                listener(exchange)


def set_up_access_log(is_wanted: bool, *, is_debug: bool = False) -> None:
    """Bare lines on standard output, whatever else is logged where. In debug also of health checks and metrics."""
    logger.disabled = not is_wanted
    logger.propagate = False
    logger.setLevel(logging.DEBUG if is_debug else logging.INFO)
    logger.handlers = [_make_handler()] if is_wanted else []


def _make_handler() -> LineHandler:
    handler = LineHandler(lambda: sys.stdout, _dropped_line)
    handler.setFormatter(_BareFormatter())
    return handler


class _BareFormatter(logging.Formatter):
    """The line is all there is to say."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


def _dropped_line(count: int) -> str:
    return _encode({"time": _now(), "error": "log_too_slow", "num_dropped_lines": count})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(exchange: Exchange) -> None:
    level = logging.DEBUG if exchange.scope["path"] in QUIET_PATHS else logging.INFO
    if logger.isEnabledFor(level):
        # Without `log`, which would look for the line of code that called it.
        logger.handle(logging.LogRecord(logger.name, level, "", 0, line_of(exchange), None, None))


def line_of(exchange: Exchange) -> str:
    """Its fields as one line of JSON; absent ones are left out, long ones cut."""
    scope = exchange.scope
    client = scope.get("client")
    fields = {
        "time": _now(),
        "request_id": scope.get("state", {}).get("request_id"),
        "method": scope["method"],
        "path": scope["path"],
        "status": exchange.status,
        "duration_ms": round(exchange.seconds * 1e3, 3),
        "client": client[0] if client else None,
        "user_agent": _user_agent(scope),
        "bytes": exchange.num_bytes,
        **exchange.facts,
        "error": exchange.error,
    }
    return _encode({name: _bounded(value) for name, value in fields.items() if value is not None})


def describe(
    records: Sequence[RequestRecord],
    *,
    model: str | None = None,
    stream: bool = False,
    n: int = 1,
    warnings: Sequence[str] | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """What a route puts into `scope["state"]["access"]` when it is done.

    `records` are prompt by prompt, `n` of each, so that a prompt's tokens count once; `error` is the code of a failure
    within a stream. Absent values are left out.
    """
    prompts = records[::n]
    facts = {
        "model": model,
        "stream": stream,
        "n": n,
        "prompt_tokens": sum(record.num_prompt_tokens for record in prompts),
        "cached_tokens": sum(record.num_cached_tokens for record in prompts),
        "completion_tokens": sum(record.num_output_tokens for record in records),
        "finish_reason": ",".join(sorted({record.finish_reason for record in records if record.finish_reason})) or None,
        **timings_of(records),
        "warnings": list(warnings) if warnings else None,
        "error": error,
    }
    return {name: value for name, value in facts.items() if value is not None}


def timings_of(records: Sequence[RequestRecord]) -> dict[str, float | None]:
    """A reply's `timings`: of several sequences the longest times, and the tokens per second of all together."""
    waits = [wait for record in records if (wait := record.first_token_seconds) is not None]
    return {
        "queue_ms": _milliseconds(max((record.queue_seconds for record in records), default=0.0)),
        "prefill_ms": _milliseconds(max((record.prefill_seconds for record in records), default=0.0)),
        "decode_ms": _milliseconds(_decode_seconds(records)),
        "ttft_ms": _milliseconds(min(waits)) if waits else None,
        "tokens_per_second": _tokens_per_second(records),
    }


def _decode_seconds(records: Sequence[RequestRecord]) -> float:
    """From the first token of any to the last token of any."""
    starts = [record.first_token_at for record in records if record.first_token_at is not None]
    ends = [record.last_token_at for record in records if record.last_token_at is not None]
    return max(ends) - min(starts) if starts and ends else 0.0


def _tokens_per_second(records: Sequence[RequestRecord]) -> float | None:
    """Each sequence's first token is not counted: its time is the prompt's."""
    seconds = _decode_seconds(records)
    num_tokens = sum(record.num_output_tokens - 1 for record in records if record.num_output_tokens > 1)
    return round(num_tokens / seconds, 2) if seconds > 0 and num_tokens else None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _encode(fields: dict[str, Any]) -> str:
    """ASCII only: a log line stays one, whatever its reader takes for a line's end."""
    line = _encode_fast(fields)
    return str(line, "ascii") if line.isascii() else _encode_ascii(fields)


def _user_agent(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"user-agent":
            return str(value[:MAX_TEXT], "latin-1")
    return None


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, list | tuple):
        return [str(item)[:MAX_TEXT] for item in value[:MAX_ITEMS]]
    return value


def _error_code(body: bytes) -> str | None:
    """Whoever refused a request, the reply says why: `{"error": {"type", "code", …}}`."""
    if not body.startswith(b"{") or len(body) > MAX_ERROR_BODY:
        return None
    try:
        error = msgspec.json.decode(body)["error"]
        code = error.get("code") or error.get("type")
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return code if isinstance(code, str) else None
