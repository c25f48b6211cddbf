"""LangChain's client, which asks in ways of its own."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.server.clients.conftest import RealServer

QUESTION = "What is the capital of France?"


class Weather(BaseModel):
    """What the weather is like."""

    city: Literal["Paris", "Rome"]
    is_wet: bool


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"It rains in {city}"


@pytest.fixture
def model(real_server: RealServer) -> ChatOpenAI:
    options: dict[str, Any] = {"max_tokens": 96, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(base_url=real_server.url, api_key=SecretStr("none"), model="smollm2", **options)


def test_invoke_and_stream(model: ChatOpenAI) -> None:
    short = model.bind(max_tokens=8)
    whole = short.invoke(QUESTION)
    assert whole.content == "".join(str(chunk.content) for chunk in short.stream(QUESTION)) != ""
    assert whole.usage_metadata["output_tokens"] == 8
    assert whole.response_metadata["finish_reason"] == "length"


def test_the_async_ways(model: ChatOpenAI) -> None:
    async def ask() -> tuple[object, str]:
        short = model.bind(max_tokens=8)
        whole = await short.ainvoke(QUESTION)
        return whole.content, "".join([str(chunk.content) async for chunk in short.astream(QUESTION)])

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_structured_output(model: ChatOpenAI) -> None:
    answer = model.with_structured_output(Weather, method="json_schema").invoke("Is it raining in Paris?")
    assert isinstance(answer, Weather)


def test_structured_output_by_a_call(tool_server: RealServer, model: ChatOpenAI) -> None:
    answer = model.with_structured_output(Weather, method="function_calling").invoke("Is it raining in Paris?")
    assert isinstance(answer, Weather)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_bound_tools(tool_server: RealServer, model: ChatOpenAI, is_streamed: bool) -> None:
    bound = model.bind_tools([get_weather], tool_choice="get_weather", strict=True)
    if is_streamed:
        first, *rest = bound.stream("Is it raining in Paris?")
        message: Any = sum(rest, start=first)
    else:
        message = bound.invoke("Is it raining in Paris?")
    [call] = message.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in ("Paris", "Rome")
