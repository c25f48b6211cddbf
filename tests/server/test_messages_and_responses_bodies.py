"""Whatever a translated API takes, a chat takes as well: no body that is sound fails on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from pydantic import BaseModel, ValidationError

from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.anthropic.request import chat_fields as message_fields
from roseinfer.server.responses.request import chat_fields as response_fields
from roseinfer.server.schemas.anthropic import MessagesRequest
from roseinfer.server.schemas.chat import ChatRequest
from roseinfer.server.schemas.responses import ResponseRequest


@pytest.mark.parametrize(
    ("model", "translate"),
    [(MessagesRequest, message_fields), (ResponseRequest, response_fields)],
    ids=["messages", "responses"],
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_what_is_taken_can_be_run(
    data: st.DataObject, model: type[BaseModel], translate: Callable[[Any], dict[str, Any]]
) -> None:
    body = data.draw(from_schema(model.model_json_schema()))
    with contextlib.suppress(ValidationError):
        request = model.model_validate(body)
        try:
            fields = translate(request)
        except InvalidRequestError as error:
            assert error.param
            return
        with contextlib.suppress(InvalidRequestError):  # two tools of one name
            try:
                ChatRequest.model_validate(fields)
            except ValidationError as error:
                raise AssertionError(f"{fields} is no chat: {error}") from error
