"""OpenAI's own client, as a judge of completions, chats, streams, tools and errors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.fake_model import RecitingProgram
from tests.server.byte_server import byte_engine
from tests.server.clients.conftest import RealServer
from tests.server.live import serve

MODEL = "smollm2"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
CHAT: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TOOLS: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Is it raining in Paris?"}],
    "tools": [WEATHER],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 128,
    "temperature": 0,
}


class Capital(BaseModel):
    country: Literal["France", "Italy"]
    is_large: bool


@pytest.fixture
def client(real_server: RealServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=real_server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_completion(client: OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=6, n=2, seed=1, logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 24
    for choice in reply.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
        assert choice.finish_reason == "length"


def test_a_completion_in_parts(client: OpenAI) -> None:
    fields: Any = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(**{**CHAT, "n": 2}, logprobs=True, top_logprobs=3)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.content == reply.choices[1].message.content
    for choice in reply.choices:
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        assert "".join(entry.token for entry in entries) == choice.message.content
        assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)  # it is greedy
        assert [len(entry.top_logprobs) for entry in entries] == [3] * len(entries)


def test_a_chat_in_parts(client: OpenAI) -> None:
    whole = client.chat.completions.create(**{**CHAT, "n": 2, "temperature": 1, "seed": 3})
    fields = {**CHAT, "n": 2, "temperature": 1, "seed": 3, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**fields))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_conversation_that_goes_on(client: OpenAI) -> None:
    first = client.chat.completions.create(**CHAT).choices[0].message
    messages = [*QUESTION, first.model_dump(), {"role": "user", "content": "And of Italy?"}]
    assert client.chat.completions.create(**{**CHAT, "messages": messages}).choices[0].message.content


def test_parsing_an_answer(client: OpenAI) -> None:
    reply = client.chat.completions.parse(**{**CHAT, "max_tokens": 96}, response_format=Capital)
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Capital)
    assert reply.choices[0].finish_reason == "stop"


def test_the_stream_helper_parses_too(client: OpenAI) -> None:
    with client.chat.completions.stream(**{**CHAT, "max_tokens": 96}, response_format=Capital) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert "content.done" in kinds
    assert isinstance(final.choices[0].message.parsed, Capital)


def test_a_forced_call(tool_server: RealServer, client: OpenAI) -> None:
    choice = client.chat.completions.create(**TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert sorted(json.loads(call.function.arguments)) == ["city", "unit"]
    answer = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*TOOLS["messages"], choice.message.model_dump(exclude_none=True), answer]
    follow = client.chat.completions.create(**{**TOOLS, "messages": messages, "tool_choice": "auto", "max_tokens": 8})
    assert follow.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_the_stream_helper_puts_calls_together(tool_server: RealServer, client: OpenAI) -> None:
    with client.chat.completions.stream(**TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert [event.name for event in done] == ["get_weather"]
    [call] = final.message.tool_calls or []
    whole = client.chat.completions.create(**TOOLS).choices[0].message.tool_calls
    assert whole is not None
    assert call.function.arguments == whole[0].function.arguments  # type: ignore[union-attr]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


def test_errors(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**CHAT, "temperature": 3})
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**CHAT, "model": "gpt-4o"})
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="a " * 4000)
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**CHAT, "tools": [WEATHER]})
    assert caught.value.param == "tools"


def test_keys() -> None:
    with byte_engine() as engine, serve(engine, api_keys=["sesame"]) as url:
        with (
            OpenAI(base_url=f"{url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        with OpenAI(base_url=f"{url}/v1", api_key="sesame") as client:
            assert [model.id for model in client.models.list()] == ["bytes"]


def test_the_async_client(real_server: RealServer) -> None:
    async def ask() -> list[str | None]:
        async with AsyncOpenAI(base_url=real_server.url, api_key="none") as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**CHAT), client.chat.completions.create(**CHAT, stream=True)
            )
            parts = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
            return [whole.choices[0].message.content, "".join(parts)]

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_leaving_a_stream_ends_the_request() -> None:
    program = RecitingProgram()
    program.step_seconds = 0.01

    async def leave(url: str) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.completions.create(
                model="bytes", prompt="Hi", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
            )
            async with stream:
                async for _ in stream:
                    break

    with byte_engine(program) as engine, serve(engine) as url:
        asyncio.run(leave(url))
        deadline = time.monotonic() + 4  # all its tokens would take five seconds
        while engine.client.stats().num_running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.client.stats().num_running == 0
        assert len(program.num_rows) < 400
