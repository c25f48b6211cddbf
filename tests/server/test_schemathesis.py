"""Requests made from /openapi.json, sound and broken ones: every reply is one that the document describes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from schemathesis import GenerationMode

from tests.server.byte_server import TOOL_TEMPLATE, byte_engine
from tests.server.live import serve
from tests.server.openapi_cases import MODES, SHARES, FuzzedServer, fuzzed_server

NUM_CASES = 2000
PLAIN = [  # take nothing, so that one case is all there is
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[FuzzedServer]:
    with (
        byte_engine(name="smollm2-135m", template=TOOL_TEMPLATE) as engine,
        serve(engine) as url,
        fuzzed_server(url) as server,
    ):
        yield server


def test_every_operation_is_tried(fuzzed: FuzzedServer) -> None:
    operations = [(found.ok().method.upper(), found.ok().path) for found in fuzzed.schema.get_all_operations()]
    assert sorted(operations) == sorted([*SHARES, *PLAIN])
    assert sum(SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize(("method", "path"), PLAIN, ids=[path for _, path in PLAIN])
def test_an_operation_that_takes_nothing(fuzzed: FuzzedServer, method: str, path: str) -> None:
    fuzzed.try_case(fuzzed.schema[path][method].Case())


@pytest.mark.parametrize("mode", MODES, ids=["sound", "broken"])
@pytest.mark.parametrize(("method", "path"), SHARES, ids=[path for _, path in SHARES])
def test_fuzzing(fuzzed: FuzzedServer, method: str, path: str, mode: GenerationMode) -> None:
    fuzzed.fuzz(method, path, mode, round(NUM_CASES * SHARES[method, path] / 2))


@pytest.mark.parametrize(("method", "path"), SHARES, ids=[path for _, path in SHARES])
def test_examples_work(fuzzed: FuzzedServer, method: str, path: str) -> None:
    """Those that /docs shows."""
    content = fuzzed.schema[path][method].definition.raw.get("requestBody", {}).get("content", {})
    for example in content.get("application/json", {}).get("examples", {}).values():
        reply = fuzzed.session.request(method, fuzzed.url + path, json=example["value"], timeout=30)
        assert reply.status_code == 200, (example, reply.text)
