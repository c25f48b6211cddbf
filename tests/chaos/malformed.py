"""R4: thousands of malformed and hostile bodies. Each gets its error in time, and the server is as it was before."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.malformed_bodies import Malformed, hostile_grammars, many_bodies, quick_bodies
from tests.chaos.result import Result, Scale, Settings
from tests.server.openapi_cases import fuzz_openapi

REPLY_SECONDS = 5.0
NUM_CONNECTIONS = 4
SETTLE_SECONDS = 10.0
CONTEXT_TOKENS = 256
SHORT_CONTEXT_TOKENS = 64  # many a sound body lets the answer be as long as it likes, which is not what is looked at
QUESTION = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0, "logprobs": 2}

_GAUGE = re.compile(r"^(\S+?)(?:\{.*\})? (\S+)$", re.MULTILINE)
# What must be as it was when nothing runs any more.
_LEFT_BEHIND = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "process_open_fds")


@dataclass(frozen=True, slots=True)
class Exchange:
    """`status` is 0 where there was no reply; `problem` says what is wrong with it, "" for nothing."""

    body: Malformed
    status: int
    seconds: float
    problem: str


def run(settings: Settings, scale: Scale) -> Result:
    """All handmade bodies, and then as many made from /openapi.json."""
    num_cases = scale.pick(40, 20_000)
    with settings.server("--max-model-len", str(CONTEXT_TOKENS)) as server:
        exchanges, problems = check(server.url, scale.pick(200, 1_000_000), server.engine_pid, scale.pick(20, 1000))
    with settings.server("--max-model-len", str(SHORT_CONTEXT_TOKENS)) as server:
        before = server.engine_pid()
        problems += fuzz_openapi(server.url, num_cases)
        if server.engine_pid() != before:
            problems.append("the engine died of a body made from /openapi.json")
    return _result(exchanges, num_cases, problems)


def check(
    url: str, num_bodies: int, engine_pid: Callable[[], int] = lambda: 0, num_grammars: int = 1000
) -> tuple[list[Exchange], list[str]]:
    """At least the quick ones, and up to `num_bodies` of the rest: what came back, and all that is not as it should be.

    `engine_pid`: the number of the process whose end would be a failure.
    """
    _ask(url)  # starts what a server starts with the first grammar
    before, state, pid = _ask(url), _settled_state(url, {}), engine_pid()
    exchanges = send_all(url, [*quick_bodies(), *_share(list(many_bodies()), num_bodies)])
    # One after the other: a grammar may have two seconds of the thread that compiles them all.
    exchanges += send_all(url, _share(list(hostile_grammars()), num_grammars), num_connections=1)
    problems = [f"{each.body.path}, {each.body.label}: {each.problem}" for each in exchanges if each.problem]
    after = _settled_state(url, state)
    problems += [f"{name} was {state[name]:g} and is {after[name]:g}" for name in state if after[name] != state[name]]
    if engine_pid() != pid:
        problems.append("the engine died")
    if _ask(url) != before:
        problems.append("a normal request gets another answer than before")
    return exchanges, problems


def _share(bodies: Sequence[Malformed], count: int) -> list[Malformed]:
    """`count` of them, spread over all."""
    step = max(1, len(bodies) // max(count, 1))
    return list(islice(bodies[::step], count))


def send_all(url: str, bodies: Iterable[Malformed], num_connections: int = NUM_CONNECTIONS) -> list[Exchange]:
    """Over connections that are kept as long as the server keeps them."""
    threads = threading.local()
    connections: list[_Connection] = []

    def send(body: Malformed) -> Exchange:
        if not hasattr(threads, "connection"):
            threads.connection = _Connection(url)
            connections.append(threads.connection)
        exchange: Exchange = threads.connection.send(body)
        return exchange

    try:
        with ThreadPoolExecutor(num_connections) as pool:
            return list(pool.map(send, bodies))
    finally:
        for connection in connections:
            connection.close()


class _Connection:
    """To one server, made anew whenever that is necessary."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=4 * REPLY_SECONDS)

    def send(self, body: Malformed) -> Exchange:
        started = time.monotonic()
        try:
            reply, content = self._exchange(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Exchange(body, 0, time.monotonic() - started, f"no reply: {error!r}")
        seconds = time.monotonic() - started
        return Exchange(body, reply.status, seconds, "; ".join(_problems(body, reply, content, seconds)))

    def _exchange(self, body: Malformed) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request("POST", body.path, body.content, body.headers)
        except (BrokenPipeError, ConnectionResetError):
            if self._connection.sock is None:  # else it was refused before all of it was read, and the reply is there
                raise
        reply = self._connection.getresponse()
        return reply, reply.read()

    def close(self) -> None:
        self._connection.close()


def _problems(body: Malformed, reply: http.client.HTTPResponse, content: bytes, seconds: float) -> Iterator[str]:
    status = reply.status
    if status == 503 and reply.getheader("retry-after"):
        return
    if status != 200 and not 400 <= status < 500:
        yield f"status {status}: {content[:300]!r}"
    elif status != 200 and not _is_error(content):
        yield f"no error of ours: {content[:300]!r}"
    elif status == 200 and (b'"server_error"' in content or b'"api_error"' in content):
        yield f"a stream that fails: {content[-300:]!r}"
    if status == 200 and body.is_refused:
        yield f"was taken: {content[:200]!r}"
    if not reply.getheader("x-request-id"):
        yield "no request id"
    if seconds > REPLY_SECONDS:
        yield f"took {seconds:.1f} s"


def _is_error(content: bytes) -> bool:
    """OpenAI's shape or Anthropic's."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, LookupError, TypeError):
        return False
    return isinstance(error, dict) and bool(error.get("message")) and isinstance(error.get("type"), str)


def _ask(url: str) -> Any:
    """A normal request's answer, and one with a grammar."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    answers = []
    for more in ({}, {"structured_outputs": {"regex": "[a-z]{1,9}"}}):
        body = json.dumps({**QUESTION, **more})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
        answers.append(json.loads(content)["choices"] if reply.status == 200 else content)
    connection.close()
    return answers


def _settled_state(url: str, wanted: dict[str, float]) -> dict[str, float]:
    """What /metrics says of all that could be left behind, as soon as it is `wanted` or has had its time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        state = _state(url)
        if state == wanted or time.monotonic() > deadline:
            return state
        if not wanted and not state.get("num_requests_running"):
            return state
        time.sleep(0.1)


def _state(url: str) -> dict[str, float]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    series = {name.rpartition(":")[2]: float(value) for name, value in _GAUGE.findall(text)}
    return {name: series[name] for name in _LEFT_BEHIND if name in series}


def _result(exchanges: Sequence[Exchange], num_cases: int, problems: list[str]) -> Result:
    statuses = Counter(exchange.status for exchange in exchanges)
    figures: dict[str, float | int | str] = {
        "handmade bodies": len(exchanges),
        "cases from /openapi.json": num_cases,
        "5xx": sum(count for status, count in statuses.items() if status >= 500),
        "no reply": statuses[0],
        "slowest reply, s": round(max(exchange.seconds for exchange in exchanges), 2),
        "problems": len(problems),
    }
    return Result("R4", "malformed requests", figures, not problems, problems[:20])
