"""Whatever a translated API takes, a chat takes as well: no body that is sound fails on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.anthropic.request import chat_fields as message_fields
from roseinfer.server.responses.request import chat_fields as response_fields
from roseinfer.server.schemas.anthropic import MessagesRequest
from roseinfer.server.schemas.chat import ChatRequest
from roseinfer.server.schemas.responses import ResponseRequest

TEXT = st.text(max_size=8)
NAME = st.sampled_from(["f", "get_weather", "x" * 64])
OBJECT = st.dictionaries(TEXT, st.none() | st.integers() | TEXT, max_size=2)


def typed(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(kind), **fields})


def mixed(*strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(*strategies), max_size=4)


TEXT_BLOCK = typed("text", text=TEXT)
USER_CONTENT = TEXT | mixed(
    TEXT_BLOCK,
    typed("tool_result", tool_use_id=TEXT, content=TEXT | mixed(TEXT_BLOCK), is_error=st.booleans()),
)
ASSISTANT_CONTENT = TEXT | mixed(
    TEXT_BLOCK,
    typed("thinking", thinking=TEXT, signature=TEXT),
    typed("redacted_thinking", data=TEXT),
    typed("tool_use", id=TEXT, name=NAME, input=OBJECT),
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": USER_CONTENT})
    | st.fixed_dictionaries({"role": st.just("assistant"), "content": ASSISTANT_CONTENT})
    | st.fixed_dictionaries({"role": st.just("system"), "content": TEXT | mixed(TEXT_BLOCK)}),
    min_size=1,
    max_size=5,
)

INPUT_TEXT, OUTPUT_TEXT = typed("input_text", text=TEXT), typed("output_text", text=TEXT)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "developer"]),
            "content": TEXT | mixed(INPUT_TEXT, OUTPUT_TEXT, typed("refusal", refusal=TEXT)),
        }
    )
    | typed("function_call", call_id=TEXT, name=NAME, arguments=TEXT)
    | typed("function_call_output", call_id=TEXT, output=TEXT | mixed(INPUT_TEXT))
    | typed("reasoning", content=st.none() | mixed(typed("reasoning_text", text=TEXT))),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)  # the models are built when they are first used
@given(MESSAGES, st.none() | TEXT | mixed(TEXT_BLOCK))
def test_messages_become_a_chat(messages: list[Any], system: Any) -> None:
    body = MessagesRequest.model_validate({"model": "m", "max_tokens": 1, "messages": messages, "system": system})
    try:
        fields = message_fields(body)
    except InvalidRequestError:
        assert messages[-1]["role"] == "assistant"
        return
    chat = ChatRequest.model_validate(fields)
    assert chat.unknown_fields() == []
    results = [block for turn in messages for block in turn["content"] if "tool_use_id" in block]
    assert [m.tool_call_id for m in chat.messages if m.role == "tool"] == [block["tool_use_id"] for block in results]


@settings(deadline=None)
@given(ITEMS, st.none() | TEXT)
def test_items_become_a_chat(items: list[Any], instructions: str | None) -> None:
    body = ResponseRequest.model_validate({"input": items, "instructions": instructions})
    chat = ChatRequest.model_validate(response_fields(body))
    assert chat.unknown_fields() == []
    calls = [call.id for m in chat.messages if m.role == "assistant" for call in m.tool_calls or ()]
    assert calls == [item["call_id"] for item in items if item.get("type") == "function_call"]
    num_messages = sum(item.get("type") in (None, "function_call_output") for item in items)
    assert len(chat.messages) >= num_messages + (instructions is not None)
