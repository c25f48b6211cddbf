"""The access log: one line of JSON per request, whatever the caller sends and however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from roseinfer.core.metrics import RequestRecord
from roseinfer.server.middleware.access_log import (
    AccessLogMiddleware,
    Exchange,
    _dropped_line,
    describe,
    line_of,
    logger,
    set_up_access_log,
    timings_of,
    write,
)
from tests.cli.processes import ServerProcess
from tests.server.live import LiveServer, StartServer

ROOT = Path(__file__).parents[2]


class Lines(logging.Handler):
    """The log, parsed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []
        self.is_debug = False

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(json.loads(record.getMessage()))

    def wait(self, count: int) -> list[dict[str, Any]]:
        """The first `count`, in the order in which they were written."""
        deadline = time.monotonic() + 10
        while len(self.found) < count:
            assert time.monotonic() < deadline, self.found
            time.sleep(0.005)
        return self.found[:count]


@contextlib.contextmanager
def kept_logger() -> Iterator[None]:
    before = logger.handlers, logger.level, logger.propagate, logger.disabled
    try:
        yield
    finally:
        logger.handlers, logger.level, logger.propagate, logger.disabled = before


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    with kept_logger():
        set_up_access_log(True)
        logger.handlers[0].close()
        logger.handlers = [lines]
        yield lines


def run(app: ASGIApp, **scope: Any) -> list[Message]:
    """What the app sends through the middleware for a request without a body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    full = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {"request_id": "r1"}, **scope}
    asyncio.run(AccessLogMiddleware(app, [write])(full, receive, send))
    return sent


def replying(
    *bodies: bytes, status: int = 200, access: dict[str, Any] | None = None, is_complete: bool = True
) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if access is not None:
            scope["state"]["access"] = access
        await send({"type": "http.response.start", "status": status, "headers": []})
        for number, body in enumerate(bodies, 1):
            await send(
                {"type": "http.response.body", "body": body, "more_body": number < len(bodies) or not is_complete}
            )

    return app


def test_what_is_known_of_every_request(server: LiveServer, lines: Lines) -> None:
    headers = {"User-Agent": "me/1.0", "X-Request-Id": "mine"}
    reply = server.client.post("/generate", json={"prompt": "Hi"}, headers=headers)
    (line,) = lines.wait(1)
    written = datetime.strptime(line.pop("time"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - written) < timedelta(seconds=30)
    assert 0 < line.pop("duration_ms") < 30_000
    basic = {name: line[name] for name in ("request_id", "method", "path", "status", "client", "user_agent", "bytes")}
    assert basic == {
        "request_id": "mine",
        "method": "POST",
        "path": "/generate",
        "status": 200,
        "client": "127.0.0.1",
        "user_agent": "me/1.0",
        "bytes": len(reply.content),
    }
    assert "error" not in line


def test_failures_are_named(start_server: StartServer, lines: Lines) -> None:
    server = start_server(api_keys=["sesame"])
    server.client.get("/nope")
    server.client.get("/nope", headers={"Authorization": "Bearer sesame"})
    server.client.post("/generate", json={"prompt": "a" * 600}, headers={"Authorization": "Bearer sesame"})
    found = [(line["status"], line["error"]) for line in lines.wait(3)]
    assert found == [(401, "invalid_api_key"), (404, "invalid_request_error"), (400, "context_length_exceeded")]


def test_health_and_metrics_are_logged_in_debug_only(server: LiveServer, lines: Lines) -> None:
    paths = ["/health", "/health/live", "/health/ready", "/metrics"]
    for path in [*paths, "/healthy"]:
        server.client.get(path)
    assert [line["path"] for line in lines.wait(1)] == ["/healthy"]
    logger.setLevel(logging.DEBUG)
    for path in paths:
        server.client.get(path)
    assert [line["path"] for line in lines.wait(5)[1:]] == paths


def test_what_a_route_says_is_in_the_line(lines: Lines) -> None:
    access = {"model": "m", "n": 2, "prompt_tokens": 3, "warnings": ["w" * 300] * 20, "error": "engine_error"}
    run(replying(b"ab", b"c", access=access))
    (line,) = lines.found
    assert (line["model"], line["n"], line["prompt_tokens"]) == ("m", 2, 3)
    assert line["warnings"] == ["w" * 256] * 16
    assert (line["status"], line["bytes"], line["error"]) == (200, 3, "engine_error")


@pytest.mark.parametrize("model", ["m", "ö"])  # one encoder writes lines of ASCII, the other the rest
def test_numbers_stay_numbers(lines: Lines, model: str) -> None:
    access = {"model": model, "a": np.float64(1.5), "b": np.float32(0.25), "c": np.int64(3), "d": HTTPStatus.OK}
    run(replying(b"", access={**access, "path_of": Path("/a")}))
    (line,) = lines.found
    assert [line[name] for name in "abcd"] == [1.5, 0.25, 3, 200]
    assert line["path_of"] == "/a"


def test_a_caller_who_has_gone_is_499(lines: Lines) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    run(silent)
    run(replying(b"ab", is_complete=False))
    assert [(line["status"], line["bytes"]) for line in lines.found] == [(499, 0), (499, 2)]


def test_a_stream_that_is_left_is_499(server: LiveServer, lines: Lines) -> None:
    server.program.step_seconds = 0.005
    body = {"prompt": "a", "max_new_tokens": 300, "stop_on_eos": False, "stream": True}
    try:
        with server.client.stream("POST", "/generate", json=body) as reply:
            pieces = reply.iter_text()  # held, because dropping it would hang up
            next(pieces)
    finally:
        server.program.step_seconds = 0.0
    (line,) = lines.wait(1)
    assert line["status"] == 499
    assert line["bytes"] > 0


@pytest.mark.parametrize("has_started", [False, True])
def test_a_crash_is_500_and_goes_on(lines: Lines, has_started: bool) -> None:
    async def crash(scope: Scope, receive: Receive, send: Send) -> None:
        if has_started:
            await replying(b"ab", is_complete=False)(scope, receive, send)
        raise RuntimeError("a secret")

    with pytest.raises(RuntimeError):
        run(crash)
    (line,) = lines.found
    assert line["status"] == 500
    assert "secret" not in json.dumps(line)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "m", "type": "t", "param": null, "code": "c"}}', "c"),
        (b'{"error": {"message": "m", "type": "t", "code": null}}', "t"),
        (b'{"type": "error", "error": {"type": "overloaded_error"}}', "overloaded_error"),
        (b'{"error": "text"}', None),
        (b'{"error": {"code": 3}}', None),
        (b'{"error": null}', None),
        (b'{"detail": 1}', None),
        (b'{"error": {', None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_the_replys_code_is_the_error(lines: Lines, body: bytes, error: str | None) -> None:
    run(replying(body, status=418))
    assert lines.found[0].get("error") == error


def test_only_http_is_logged(lines: Lines) -> None:
    run(replying(b""), type="lifespan")
    assert lines.found == []


@given(
    path=st.text(max_size=400), agent=st.binary(max_size=400), model=st.text(max_size=400), method=st.text(max_size=9)
)
def test_nothing_that_is_sent_can_forge_a_line(path: str, agent: bytes, model: str, method: str) -> None:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"host", b"x"), (b"user-agent", agent)],
        "state": {"request_id": "r1", "access": {"model": model}},
    }
    line = line_of(Exchange(scope, 0.0, status=200))
    assert line.isascii()
    assert line.isprintable() or "\x7f" in line  # DEL moves nothing
    assert len(line) < 12 * 4 * 256
    read = json.loads(line)
    assert (read["path"], read["model"], read["method"]) == (path[:256], model[:256], method)
    assert read["user_agent"] == agent[:256].decode("latin-1")


def test_where_lines_go(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with kept_logger(), caplog.at_level(logging.DEBUG):
        set_up_access_log(True)
        run(replying(b""), path="/a\nb")
        logger.handlers[0].close()
        set_up_access_log(False)
        run(replying(b""))
    shown = capsys.readouterr()
    assert json.loads(shown.out)["path"] == "/a\nb"
    assert shown.out.count("\n") == 1
    assert shown.err == ""
    assert not [record for record in caplog.records if record.name == logger.name]


def test_a_log_that_nobody_reads_disturbs_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with kept_logger(), (tmp_path / "log").open("w") as closed:
        closed.close()
        monkeypatch.setattr(sys, "stdout", closed)
        set_up_access_log(True)
        assert run(replying(b""))[0]["status"] == 200
        logger.handlers[0].close()


def test_a_log_that_is_read_late_says_what_it_lacks(capfd: pytest.CaptureFixture[str]) -> None:
    with kept_logger():
        set_up_access_log(True)
        logger.handlers[0].emit(logging.makeLogRecord({"msg": '{"path":"/a"}'}))
        dropped = json.loads(_dropped_line(3))
        logger.handlers[0].close()
    assert capfd.readouterr().out == '{"path":"/a"}\n'
    assert (dropped["error"], dropped["num_dropped_lines"]) == ("log_too_slow", 3)


def record(**changes: Any) -> RequestRecord:
    """5 tokens: 1 s in the queue, 0.5 s of prefill, 2 s for the other 4."""
    fields: dict[str, Any] = {
        "arrived_at": 100.0,
        "first_token_at": 101.6,
        "last_token_at": 103.6,
        "queue_seconds": 1.0,
        "prefill_seconds": 0.5,
        "num_cached_tokens": 16,
        "num_output_tokens": 5,
        "finish_reason": "stop",
    }
    return RequestRecord(20, 64, **{**fields, **changes})


def test_one_sequence_described() -> None:
    assert describe([record()], model="m", stream=True, warnings=["w"]) == {
        "model": "m",
        "stream": True,
        "n": 1,
        "prompt_tokens": 20,
        "cached_tokens": 16,
        "completion_tokens": 5,
        "finish_reason": "stop",
        "queue_ms": 1000.0,
        "prefill_ms": 500.0,
        "decode_ms": 2000.0,
        "ttft_ms": 1600.0,
        "tokens_per_second": 2.0,
        "warnings": ["w"],
    }


def test_several_sequences_described() -> None:
    """Two prompts, two choices of each: a prompt counts once, times are the longest."""
    later = record(first_token_at=102.6, last_token_at=105.6, queue_seconds=2.0, finish_reason="length")
    facts = describe([record(), later, record(), later], n=2)
    assert (facts["prompt_tokens"], facts["cached_tokens"], facts["completion_tokens"]) == (40, 32, 20)
    assert facts["finish_reason"] == "length,stop"
    assert (facts["queue_ms"], facts["prefill_ms"], facts["decode_ms"], facts["ttft_ms"]) == (2000, 500, 4000, 1600)
    assert facts["tokens_per_second"] == 4.0


def test_a_sequence_that_never_began_described() -> None:
    facts = describe([RequestRecord(20, 64)], error="engine_error")
    assert (facts["completion_tokens"], facts["decode_ms"], facts["error"]) == (0, 0.0, "engine_error")
    assert not {"ttft_ms", "tokens_per_second", "finish_reason"} & facts.keys()
    assert describe([])["prompt_tokens"] == 0


def test_one_token_has_no_rate() -> None:
    timings = timings_of([record(num_output_tokens=1, last_token_at=101.6)])
    assert timings["tokens_per_second"] is None
    assert timings["decode_ms"] == 0.0


@given(st.lists(st.tuples(*[st.floats(0, 1e4)] * 3, st.integers(0, 500)), max_size=5))
def test_timings_are_finite_and_not_negative(drawn: list[tuple[float, float, float, int]]) -> None:
    records = [
        record(queue_seconds=queue, first_token_at=100 + queue, last_token_at=100 + queue + decode, num_output_tokens=n)
        for queue, _, decode, n in drawn
    ]
    for value in timings_of(records).values():
        assert value is None or 0 <= value < float("inf")


@pytest.mark.parametrize(
    ("flags", "paths"), [([], ["/nope"]), (["--no-access-log"], []), (["--log-level", "debug"], ["/health", "/nope"])]
)
def test_the_command_writes_lines_to_standard_output(tmp_path: Path, flags: list[str], paths: list[str]) -> None:
    command = [sys.executable, "-m", "tests.cli.fake_main", "serve", "--port", "0", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(tmp_path)
    ) as process:
        server = ServerProcess(process)
        httpx.get(f"{server.url}/health")
        httpx.get(f"{server.url}/nope")
        assert server.stop() == 0
        assert process.stdout is not None
        written = [json.loads(line) for line in process.stdout]
    assert [line["path"] for line in written] == paths
    assert not any("/nope" in line for line in server.log)


def _environment(tmp_path: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
