"""Requests made from /openapi.json, sound and broken ones: every reply is one that the document describes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.byte_server import TOOL_TEMPLATE, byte_engine
from tests.server.live import serve

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# Cases by operation, half of them sound and half of them broken: 2,000 in all.
NUM_CASES = {
    ("POST", "/v1/chat/completions"): 160,
    ("POST", "/v1/chat/completions/render"): 120,
    ("POST", "/v1/completions"): 680,
    ("POST", "/v1/responses"): 160,
    ("POST", "/v1/messages"): 100,
    ("POST", "/v1/messages/count_tokens"): 60,
    ("POST", "/generate"): 240,
    ("POST", "/tokenize"): 180,
    ("POST", "/detokenize"): 260,
    ("GET", "/v1/models/{model_id}"): 40,
}
UNBREAKABLE = [("GET", "/v1/models/{model_id}")]  # any text is a sound one
PLAIN = [  # take nothing, so that one case is all there is
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
]


@dataclass(frozen=True)
class FuzzedServer:
    url: str
    schema: schemathesis.BaseSchema
    session: requests.Session

    def try_case(self, case: schemathesis.Case) -> None:
        """A stream is read to its end, too."""
        case.call_and_validate(base_url=self.url, session=self.session, checks=CHECKS, timeout=30)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[FuzzedServer]:
    config = schemathesis.Config.from_dict({"seed": 1, "generation": {"deterministic": True}})
    with (
        byte_engine(name="smollm2-135m", template=TOOL_TEMPLATE) as engine,
        serve(engine) as url,
        requests.Session() as session,
    ):
        yield FuzzedServer(url, schemathesis.openapi.from_url(f"{url}/openapi.json", config=config), session)


def test_every_operation_is_tried(fuzzed: FuzzedServer) -> None:
    operations = [(found.ok().method.upper(), found.ok().path) for found in fuzzed.schema.get_all_operations()]
    assert sorted(operations) == sorted([*NUM_CASES, *PLAIN])
    assert sum(NUM_CASES.values()) == 2000


@pytest.mark.parametrize(("method", "path"), PLAIN, ids=[path for _, path in PLAIN])
def test_an_operation_that_takes_nothing(fuzzed: FuzzedServer, method: str, path: str) -> None:
    fuzzed.try_case(fuzzed.schema[path][method].Case())


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["sound", "broken"])
@pytest.mark.parametrize(("method", "path"), NUM_CASES, ids=[path for _, path in NUM_CASES])
def test_fuzzing(fuzzed: FuzzedServer, method: str, path: str, mode: GenerationMode) -> None:
    if (method, path) in UNBREAKABLE:
        mode = GenerationMode.POSITIVE
    operation = fuzzed.schema[path][method]

    @settings(
        max_examples=NUM_CASES[method, path] // 2,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        fuzzed.try_case(data.draw(operation.as_strategy(generation_mode=mode)))

    fuzz()


@pytest.mark.parametrize(("method", "path"), NUM_CASES, ids=[path for _, path in NUM_CASES])
def test_examples_work(fuzzed: FuzzedServer, method: str, path: str) -> None:
    """Those that /docs shows."""
    content = fuzzed.schema[path][method].definition.raw.get("requestBody", {}).get("content", {})
    for example in content.get("application/json", {}).get("examples", {}).values():
        reply = fuzzed.session.request(method, fuzzed.url + path, json=example["value"], timeout=30)
        assert reply.status_code == 200, (example, reply.text)
