"""`GET /v1/models`, the OpenAPI document and the page that shows it."""

from __future__ import annotations

import re
import time

import pytest

from tests.server.live import LiveServer, assert_error


def test_the_model_is_listed(server: LiveServer) -> None:
    reply = server.client.get("/v1/models").json()
    assert reply["object"] == "list"
    (model,) = reply["data"]
    assert server.client.get("/v1/models/fake").json() == model
    assert abs(model.pop("created") - time.time()) < 3600
    assert model == {"id": "fake", "object": "model", "owned_by": "roseinfer", "max_model_len": 512}


@pytest.mark.parametrize("name", ["x", "org/model", "Fake", "f%20ake"])
def test_others_are_not_found(server: LiveServer, name: str) -> None:
    assert_error(server.client.get("/v1/models/" + name), 404, param="model", code="model_not_found")


def test_the_page_asks_nobody_else(server: LiveServer) -> None:
    reply = server.client.get("/docs")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"https?://|src=|@import", reply.text)


def test_every_field_is_described(server: LiveServer) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest", "GenerateRequest"):
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), f"{name}.{field}"
