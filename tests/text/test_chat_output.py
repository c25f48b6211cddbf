"""Reasoning, content and calls of one choice together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.chat_output import ChatOutput, ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart
from roseinfer.text.reasoning import ReasoningTags
from roseinfer.text.tool_dialects import dialect_names, load_dialect
from tests.text.tool_dialects.answers import TOOLS, TWO_CALLS, Answer, cuts, parse

THINK = ReasoningTags("<think>", "</think>")


def output_of(name: str, *, parallel: bool = True, is_reasoning_open: bool = False) -> ChatOutput:
    return ChatOutput(
        load_dialect(name),
        THINK,
        is_reasoning_open=is_reasoning_open,
        tools=TOOLS,
        parallel=parallel,
        new_call_id=lambda: "id",
    )


@pytest.mark.parametrize("name", dialect_names())
@given(data=st.data())
def test_calls_after_reasoning(name: str, data: st.DataObject) -> None:
    _, pieces = data.draw(cuts(st.just(f"<think>\nLet me call now.\n</think>\n\n{TWO_CALLS[name]}")))
    output = output_of(name)
    answer = parse(output, pieces)
    assert (answer.reasoning, answer.content) == ("Let me call now.", "")
    assert [called for called, _ in answer.calls] == ["get_weather", "now"]
    assert output.has_tool_calls


@pytest.mark.parametrize("name", dialect_names())
def test_only_the_first_call_where_there_may_be_one(name: str) -> None:
    output = output_of(name, parallel=False)
    answer = parse(output, TWO_CALLS[name])
    assert [called for called, _ in answer.calls] == ["get_weather"]
    assert output.has_tool_calls


def test_calls_inside_of_reasoning_are_reasoning() -> None:
    output = output_of("hermes", is_reasoning_open=True)
    answer = parse(output, [TWO_CALLS["hermes"]])
    assert answer == Answer(reasoning=TWO_CALLS["hermes"])
    assert not output.has_tool_calls


def test_has_tool_calls_from_the_first_name_on() -> None:
    output = output_of("hermes")
    output.push('<tool_call>{"name": ')
    assert not output.has_tool_calls
    output.push('"f"')
    assert output.has_tool_calls


def test_events() -> None:
    output = output_of("hermes")
    assert output.push("<think>Hm") == [ReasoningDelta("Hm")]
    assert output.push('</think>So:<tool_call>{"name": "f", "arguments": {"a"') == [
        ContentDelta("So:"),
        ToolCallStart(0, "id", "f"),
        ToolCallArguments(0, '{"a"'),
    ]
    assert output.push("") == []
    assert output.push(": 1}}</tool_call>\nDone") == [ToolCallArguments(0, ": 1}"), ContentDelta("\nDone")]
    assert output.finish() == []


def test_what_is_held_back_comes_in_the_end() -> None:
    output = output_of("hermes")
    assert output.push("a <tool_") == [ContentDelta("a ")]
    assert output.finish() == [ContentDelta("<tool_")]
    output = output_of("hermes")
    assert output.push("<thi") == []
    assert output.finish() == [ContentDelta("<thi")]


@given(cuts(st.text()))
def test_without_dialect_and_reasoning_all_is_content(cut: tuple[str, list[str]]) -> None:
    text, pieces = cut
    assert parse(ChatOutput(), pieces) == Answer(content=text)


def test_ids_are_fresh_unless_given() -> None:
    answer = parse(ChatOutput(load_dialect("hermes")), [TWO_CALLS["hermes"]])
    assert len(set(answer.call_ids)) == 2
    assert all(call_id.startswith("call_") for call_id in answer.call_ids)


fragments = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        '{"name": "f"',
        ', "arguments": ',
        "{}",
        "}",
        "\n",
        "x",
        "<",
        "é",
    ]
)


@given(cut=cuts(st.lists(fragments, max_size=20).map("".join)), is_open=st.booleans())
def test_any_cut_gives_the_same_answer(cut: tuple[str, list[str]], is_open: bool) -> None:
    text, pieces = cut
    answer = parse(output_of("hermes", is_reasoning_open=is_open), pieces)
    assert answer == parse(output_of("hermes", is_reasoning_open=is_open), [text])
    assert answer.content.count("x") + answer.reasoning.count("x") == text.count("x") - sum(
        arguments.count("x") for _, arguments in answer.calls
    )
