"""Calls out of answers, however they are cut and whatever else the model writes."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.tool_dialects import ToolCallParser, dialect_names, load_dialect
from tests.text.tool_dialects.answers import JSON_FRAMES, TOOLS, TWO_CALLS, Answer, cuts, parse


def parser_of(name: str) -> ToolCallParser:
    ids = count()
    return load_dialect(name).parser(TOOLS, lambda: f"id-{next(ids)}")


def parse_whole(name: str, text: str) -> Answer:
    return parse(parser_of(name), [text])


@pytest.mark.parametrize("name", dialect_names())
def test_calls(name: str) -> None:
    answer = parse_whole(name, TWO_CALLS[name])
    assert [[called, json.loads(text)] for called, text in answer.calls] == [
        ["get_weather", {"city": "Bonn"}],
        ["now", {}],
    ]
    assert answer.call_ids == ["id-0", "id-1"]
    assert answer.content == ""


@pytest.mark.parametrize("name", dialect_names())
def test_content_around_calls(name: str) -> None:
    marked = load_dialect(name).opening
    text = f"Let me see. {TWO_CALLS[name]} And?" if marked else f"\n{TWO_CALLS[name]} And?"
    answer = parse_whole(name, text)
    assert len(answer.calls) == 2
    assert answer.content.split() == (["Let", "me", "see.", "And?"] if marked else ["And?"])


@pytest.mark.parametrize("name", dialect_names())
def test_without_calls_all_is_content(name: str) -> None:
    for text in (
        "",
        "\n",
        " Hello <there> [you] {me}\n",
        '{"a": 1}',
        "[1, 2]",
        "[link](url)",
        '{"name": "Ann", "age": 3}',
    ):
        assert parse_whole(name, text) == Answer(content=text)


@pytest.mark.parametrize("name", dialect_names())
def test_content_streams(name: str) -> None:
    parser = parser_of(name)
    assert [parse_events(parser, word).content for word in ("Hel", "lo", " there")] == ["Hel", "lo", " there"]


def parse_events(parser: ToolCallParser, text: str) -> Answer:
    answer = Answer()
    answer.add(parser.push(text))
    return answer


@pytest.mark.parametrize("name", dialect_names())
def test_a_beginning_of_a_marker_is_held_back(name: str) -> None:
    opening = load_dialect(name).opening
    if not opening:
        return
    parser = parser_of(name)
    assert parse_events(parser, f"a {opening[:-1]}").content == "a "
    assert parse_events(parser, "!").content == f"{opening[:-1]}!"


def test_a_name_streams_and_so_do_arguments() -> None:
    parser = parser_of("hermes")
    assert parse_events(parser, '<tool_call>{"name": "f"').calls == [["f", ""]]
    pieces = [', "arguments": {"a": "x', "y", '", "b', '": [1', "]}", "}</tool_call>"]
    texts = [[event.text for event in parser.push(piece)] for piece in pieces]  # type: ignore[union-attr]
    assert texts == [['{"a": "x'], ["y"], ['", "b'], ['": [1'], ["]}"], []]


@pytest.mark.parametrize("name", dialect_names())
@given(data=st.data())
def test_cuts_of_content_and_calls(name: str, data: st.DataObject) -> None:
    text = f"{'So: ' if load_dialect(name).opening else ''}{TWO_CALLS[name]} done"
    _, pieces = data.draw(cuts(st.just(text)))
    assert parse(parser_of(name), pieces) == parse_whole(name, text)


FRAGMENTS = sorted(
    {
        *(marker for name in dialect_names() for marker in load_dialect(name).markers),
        *(piece for frame in JSON_FRAMES.values() for piece in frame if piece),
        *(
            "<function=f>",
            "<parameter=a>",
            "</parameter>",
            "</function>",
            "[f(a=",
            "f(",
            "b='",
            '"',
            "'",
            "\\",
            "{",
            "}",
        ),
        *(
            "[",
            "]",
            "(",
            ")",
            ",",
            ";",
            ":",
            " ",
            "\n",
            "=",
            "1",
            "name",
            '"name": "f"',
            '"arguments": {',
            "é",
            "😀",
            "```",
        ),
        *("<", "<tool", "[TOOL", "None", "\\u12", "\\x4", "null", "true", '"a": ', "<｜tool", "text"),
    }
)
garbage = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)


def is_subsequence(part: str, whole: str) -> bool:
    characters = iter(whole)
    return all(character in characters for character in part)


@given(name=st.sampled_from(dialect_names()), cut=cuts(garbage))
def test_garbage_is_never_lost(name: str, cut: tuple[str, list[str]]) -> None:
    text, pieces = cut
    answer = parse(parser_of(name), pieces)
    assert answer == parse_whole(name, text)
    kept = text.replace("<|python_end|>", "") if name == "pythonic" else text
    if answer.calls:
        assert is_subsequence(answer.content, kept)
    else:
        assert answer.content == kept


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(
    st.text(max_size=4) | st.sampled_from(["}", '"', "\\", "</tool_call>"]), json_values, max_size=3
)


@given(
    name=st.sampled_from(sorted(JSON_FRAMES)),
    arguments=json_objects,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
    size=st.integers(1, 9),
)
def test_json_arguments_come_as_they_are_written(
    name: str, arguments: dict[str, Any], ascii_only: bool, indent: int | None, size: int
) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    before, behind = JSON_FRAMES[name]
    text = before + written + behind
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    assert parse(parser_of(name), pieces) == Answer(calls=[["f", written]], call_ids=["id-0"])


@given(
    arguments=st.dictionaries(st.from_regex(r"[a-z_]\w*", fullmatch=True), json_values, max_size=3),
    size=st.integers(1, 9),
)
def test_python_arguments_become_json(arguments: dict[str, Any], size: int) -> None:
    text = f"[f({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    answer = parse(parser_of("pythonic"), pieces)
    assert answer.content == ""
    assert [[name, json.loads(written)] for name, written in answer.calls] == [["f", arguments]]


@pytest.mark.parametrize(
    ("name", "text", "calls", "content"),
    [
        # What some models do, and what is left of it.
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [["f", '{"a": 1}']], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [["f", '{"a": 1}']], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [["f", "{}"]], ""),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', [["f", "{}"]], ""),
        ("hermes", '<tool_call>{"id": "x", "type": "function", "name": "f", "arguments": {}}', [["f", "{}"]], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> so', [["f", '{"a": 1}']], " so"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call> so', [["f", '{"a": 1']], " so"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call>', [["f", "{'a': 1}"]], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', [["f", '{"a": 1']], ""),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {}}\n{"name": "g"}</tool_call>',
            [["f", "{}"], ["g", "{}"]],
            "",
        ),
        ("hermes", "<tool_call>f()</tool_call>", [], "<tool_call>f()</tool_call>"),
        ("hermes", '<tool_call>{"name": ""}</tool_call>', [], '<tool_call>{"name": ""}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3}', [], '<tool_call>{"name": 3}'),
        ("hermes", '<tool_call>{"name": "\\ud800"}', [["\ufffd", "{}"]], ""),
        ("hermes", '<tool_call><tool_call>{"name": "f"}', [["f", "{}"]], "<tool_call>"),
        ("hermes", '<tool_call>{"name": "f", so', [["f", ""]], ", so"),
        ("hermes", "Done.<|im_end|>\n<|im_start|>", [], "Done.\n"),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {}}', [["f", "{}"]], ""),
        ("llama3_json", 'Well <|python_tag|>{"name": "f", "parameters": {}}', [["f", "{}"]], "Well "),
        ("llama3_json", '<|python_tag|>print("x")', [], '<|python_tag|>print("x")'),
        ("llama3_json", '{"type": "function", "name": "f", "parameters": {}};', [["f", "{}"]], ";"),
        ("llama3_json", '{"name": "f"}', [], '{"name": "f"}'),
        ("llama3_json", 'So: {"name": "f", "parameters": {}}', [], 'So: {"name": "f", "parameters": {}}'),
        ("mistral", '[TOOL_CALLS]{"name": "f", "arguments": {}}', [["f", "{}"]], ""),
        ("mistral", "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}", [["f", "{}"]], ""),
        ("mistral", "[TOOL_CALLS]f{}</s>", [["f", "{}"]], ""),
        ("mistral", "[TOOL_CALLS]f[ARGS]no", [], "[TOOL_CALLS]f[ARGS]no"),
        ("mistral", "[TOOL_CALLS][] no", [], "[TOOL_CALLS][] no"),
        ("pythonic", "<|python_start|>[f(a=1)]<|python_end|>", [["f", '{"a": 1}']], ""),
        ("pythonic", "[f(a=1, g(b=2))]", [["f", '{"a": 1']], ", g(b=2))]"),
        ("pythonic", "[f(1)]", [], "[f(1)]"),
        ("pythonic", "[f(a=1", [["f", '{"a": 1']], ""),
        ("pythonic", "[f(a=oops)]", [["f", ""]], "oops)]"),
        ("qwen3_coder", "<function=f>\n</function>", [["f", "{}"]], ""),
        ("qwen3_coder", "<tool_call>\n{}\n</tool_call>", [], "<tool_call>\n{}\n</tool_call>"),
        ("qwen3_coder", "<function=f><parameter=a>x</function>", [["f", ""]], "<parameter=a>x</function>"),
        ("deepseek_v3", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}", [["f", "{}"]], ""),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>no", [], "<｜tool▁calls▁begin｜>no"),
        ("deepseek_v3", "Done.<｜end▁of▁sentence｜>", [], "Done."),
    ],
)
def test_what_models_do_wrong(name: str, text: str, calls: list[list[str]], content: str) -> None:
    answer = parse_whole(name, text)
    assert (answer.calls, answer.content) == (calls, content)
    assert parse(parser_of(name), text) == answer


def test_types_of_plain_text() -> None:
    values = {"city": "3", "days": "3", "unit": "C", "detailed": "True", "at": "null", "other": "7"}
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    answer = parse_whole("qwen3_coder", f"<tool_call>\n<function=get_weather>\n{parameters}</function>\n</tool_call>")
    assert json.loads(answer.calls[0][1]) == {
        "city": "3", "days": 3, "unit": "C", "detailed": True, "at": None, "other": "7"
    }  # fmt: skip


@pytest.mark.parametrize("value", ["three", "3.5", "1e999", "NaN", "[" * 100_000, "9" * 5_000, '"3"', ""])
def test_plain_text_of_another_type_stays_text(value: str) -> None:
    text = f"<function=get_weather><parameter=days>{value}</parameter></function>"
    assert json.loads(parse_whole("qwen3_coder", text).calls[0][1]) == {"days": value}


@pytest.mark.parametrize("name", dialect_names())
def test_markers_that_lead_nowhere_are_content(name: str) -> None:
    text = (load_dialect(name).opening or "[") * 2_000
    assert parse_whole(name, text).content == text


def test_random_ids() -> None:
    dialect = load_dialect("hermes")
    assert len({dialect.new_call_id() for _ in range(100)}) == 100
    assert dialect.new_call_id().startswith("call_")
    assert len(load_dialect("mistral").new_call_id()) == len(load_dialect("mistral_v11").new_call_id()) == 9
