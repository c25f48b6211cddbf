"""Both translated APIs over a real model and its own chat template, against what `/v1/chat/completions` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from roseinfer.inference_engine import InferenceEngine
from tests.server.live import serve

QUESTION: Any = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
SYSTEM = "You know geography."
SETTINGS: Any = {"model": "smollm2", "temperature": 0}


@pytest.fixture(scope="module")
def url(smollm2_path: Path) -> Iterator[str]:
    with (
        InferenceEngine(str(smollm2_path), served_model_name="smollm2", threads=2) as engine,
        serve(engine) as url,
    ):
        yield url


@pytest.fixture(scope="module")
def chat(url: str) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        messages: Any = [{"role": "system", "content": SYSTEM}, QUESTION]
        return client.chat.completions.create(**SETTINGS, messages=messages, max_completion_tokens=24)


def test_a_message_is_the_chat_in_other_words(url: str, chat: Any) -> None:
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        body: Any = {"model": "smollm2", "max_tokens": 24, "messages": [QUESTION], "system": SYSTEM}
        body["extra_body"] = {"temperature": 0}  # which the API has, and this client no longer
        message = client.messages.create(**body)
        with client.messages.stream(**body) as stream:
            streamed = "".join(stream.text_stream)
        counted = client.messages.count_tokens(model="smollm2", messages=[QUESTION], system=SYSTEM)
    text = chat.choices[0].message.content
    assert "Paris" in text
    assert message.content[0].to_dict()["text"] == streamed == text
    assert message.usage.output_tokens == chat.usage.completion_tokens
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_a_response_is_the_chat_in_other_words(url: str, chat: Any) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        body = {**SETTINGS, "input": [QUESTION], "instructions": SYSTEM, "max_output_tokens": 24}
        response = client.responses.create(**body)
        pieces = [
            event.delta for event in client.responses.create(**body, stream=True) if event.type.endswith(".delta")
        ]
    assert response.output_text == "".join(pieces) == chat.choices[0].message.content
    assert response.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens
