"""`/docs` and `/openapi.json`: complete, and without a word from elsewhere."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from roseinfer.server.documentation import DocumentedApp
from tests.server.byte_server import byte_engine
from tests.server.live import serve


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with byte_engine() as engine, serve(engine) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Any:
    return client.get("/openapi.json").json()


def operations(document: Any) -> list[tuple[str, Any]]:
    return [(path, operation) for path, methods in document["paths"].items() for operation in methods.values()]


def test_the_page_asks_nobody_else(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"""https?://|["'(=\s]//[a-z]|url\(|@import""", page.text) == []
    assert "openapi.json" in page.text


def test_the_page_may_run_what_is_in_it_and_nothing_else(client: httpx.Client) -> None:
    page = client.get("/docs")
    (policy,) = page.headers.get_list("content-security-policy")
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    for element in ("style", "script"):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page.text, re.DOTALL)
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert sources.pop(f"{element}-src") == f"'sha256-{digest}'"
    assert (sources.pop("connect-src"), sources.pop("img-src")) == ("'self'", "data:")
    assert sources["default-src"] == sources["frame-ancestors"] == "'none'"
    assert set(sources.values()) == {"'none'"}
    assert not re.search(r"\son[a-z]+=|\sstyle=|javascript:", page.text)


def test_the_document_is_made_once_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[threading.Thread] = []
    make = DocumentedApp.openapi

    def slow(app: DocumentedApp) -> dict[str, Any]:
        makers.append(threading.current_thread())
        time.sleep(1)
        return make(app)

    monkeypatch.setattr(DocumentedApp, "openapi", slow)
    with byte_engine() as engine, serve(engine) as url, ThreadPoolExecutor(3) as pool:
        documents = [pool.submit(httpx.get, f"{url}/openapi.json", timeout=30) for _ in range(3)]
        while not makers:
            time.sleep(0.01)
        started = time.monotonic()
        assert httpx.get(f"{url}/health").status_code == 200
        assert time.monotonic() - started < 0.9
        replies = [document.result() for document in documents]
    assert len(makers) == 1
    assert {reply.headers["content-type"] for reply in replies} == {"application/json"}
    assert replies[0].json()["openapi"] == replies[2].json()["openapi"]


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
def test_there_is_no_other_page(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_every_operation_says_what_it_is(document: Any) -> None:
    for path, operation in operations(document):
        assert operation["summary"], path
        assert operation.get("description"), path


def test_every_operation_says_how_it_fails(document: Any) -> None:
    for path, operation in operations(document):
        for status in ("4XX", "5XX"):
            content = operation["responses"][status]["content"]["application/json"]
            assert "$ref" in content["schema"], path


def test_every_body_has_examples_that_are_sound(document: Any) -> None:
    for path, operation in operations(document):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]
        schema = {**content["schema"], "components": document["components"]}
        assert content["examples"], path
        for example in content["examples"].values():
            Draft202012Validator(schema).validate(example["value"])
