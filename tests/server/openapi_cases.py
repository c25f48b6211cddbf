"""Requests made from /openapi.json, sound and broken ones, and what every reply to one must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# Parts of all cases by operation: the more it takes, the more there is to be tried.
SHARES = {
    ("POST", "/v1/chat/completions"): 0.08,
    ("POST", "/v1/chat/completions/render"): 0.06,
    ("POST", "/v1/completions"): 0.34,
    ("POST", "/v1/responses"): 0.08,
    ("POST", "/v1/messages"): 0.05,
    ("POST", "/v1/messages/count_tokens"): 0.03,
    ("POST", "/generate"): 0.12,
    ("POST", "/tokenize"): 0.09,
    ("POST", "/detokenize"): 0.13,
    ("GET", "/v1/models/{model_id}"): 0.02,
}
UNBREAKABLE = [("GET", "/v1/models/{model_id}")]  # any text is a sound one
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
MAX_CASES = 500  # of one run: what Hypothesis has made it remembers
REPLY_SECONDS = 60


@dataclass(frozen=True)
class FuzzedServer:
    url: str
    schema: schemathesis.BaseSchema
    session: requests.Session

    def try_case(self, case: schemathesis.Case) -> None:
        """A stream is read to its end, too."""
        case.call_and_validate(base_url=self.url, session=self.session, checks=CHECKS, timeout=REPLY_SECONDS)

    def fuzz(self, method: str, path: str, mode: GenerationMode, num_cases: int, number: int = 0) -> None:
        """Raises for the first reply that is wrong. Runs of other numbers try other cases."""
        mode = GenerationMode.POSITIVE if (method, path) in UNBREAKABLE else mode
        cases = self.schema[path][method].as_strategy(generation_mode=mode)

        @seed(number)
        @settings(
            max_examples=num_cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def fuzz(data: st.DataObject) -> None:
            self.try_case(data.draw(cases))

        fuzz()


@contextmanager
def fuzzed_server(url: str) -> Iterator[FuzzedServer]:
    """Around a server that runs."""
    config = schemathesis.Config.from_dict({"seed": 1, "generation": {"deterministic": True}})
    with requests.Session() as session:
        yield FuzzedServer(url, schemathesis.openapi.from_url(f"{url}/openapi.json", config=config), session)


def fuzz_openapi(url: str, num_cases: int) -> list[str]:
    """So many cases over all operations, half of them broken; what was wrong with a reply, run by run."""
    problems = []
    with fuzzed_server(url) as server:
        for (method, path), share in SHARES.items():
            for mode in MODES:
                for number, count in enumerate(_runs(round(num_cases * share / 2))):
                    try:
                        server.fuzz(method, path, mode, count, number)
                    except Exception as error:  # of which a wrong reply may bring several kinds, one or in groups
                        problems.append(f"{method} {path}: {error!s:.1000}")
    return problems


def _runs(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, MAX_CASES)
        count -= MAX_CASES
