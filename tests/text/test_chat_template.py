"""Rendering equals that of transformers; what templates and callers may do beyond that is refused, and quickly."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from roseinfer.core.errors import InvalidRequestError
from roseinfer.text.chat_template import ChatTemplate

FOLDER = Path(__file__).parent / "chat_templates"
NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

SYSTEM = {"role": "system", "content": " You are kind. "}
HELLO = {"role": "user", "content": " Hi there,\n naïve <b>漢字</b> & 'you' \n"}
ANSWER = {"role": "assistant", "content": "Hello!  "}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
THOUGHTS = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIt rains."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather <now> & here",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time",
            "parameters": {"type": "object", "properties": {"zone": {"type": "integer", "description": "Hours é"}}},
        },
    },
]
CALL_ID = "abcdefghi"
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": CALL_ID, "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": CALL_ID, "content": '{"sky": "blue"}'}

CHATS = {
    "plain": [HELLO],
    "turns": [HELLO, ANSWER, QUESTION],
    "system": [SYSTEM, HELLO, ANSWER, HELLO],
    "thoughts": [HELLO, THOUGHTS, QUESTION],
}
WITH_TOOLS = ["hermes", "qwen2_5", "qwen3", "llama3_1", "llama3_2_pythonic", "mistral_v3", "mistral_v7", "deepseek_r1"]
TOOL_CHATS = {
    "tools": [SYSTEM, QUESTION],
    "call": [QUESTION, CALL, RESULT],
    "answered": [SYSTEM, QUESTION, CALL, RESULT, {"role": "assistant", "content": "Blue."}, HELLO],
}


def source_of(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text()


def template(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, **{**TOKENS, **options})


def expected(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """What transformers makes of it."""
    return render_jinja_template([messages], chat_template=source, **{**TOKENS, **options})[0][0]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "hermes"])
def test_equals_transformers(name: str, chat: str, add_generation_prompt: bool) -> None:
    rendered = template(source_of(name)).render(CHATS[chat], add_generation_prompt=add_generation_prompt)
    assert rendered.text == expected(source_of(name), CHATS[chat], add_generation_prompt=add_generation_prompt)
    assert rendered.segments == [(rendered.text, True)]


@pytest.mark.parametrize("chat", TOOL_CHATS)
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_equal_transformers(name: str, chat: str) -> None:
    messages = TOOL_CHATS[chat]
    rendered = template(source_of(name)).render(messages, tools=TOOLS)
    assert rendered.text == expected(source_of(name), messages, tools=TOOLS, add_generation_prompt=True)
    as_sent = json.loads(json.dumps(messages))  # clients send arguments as JSON
    for message in as_sent:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    assert template(source_of(name)).render(as_sent, tools=TOOLS) == rendered


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_keyword_arguments(enable_thinking: bool) -> None:
    options = {"add_generation_prompt": True, "enable_thinking": enable_thinking}
    rendered = template(source_of("qwen3")).render([HELLO], **options)
    assert rendered.text == expected(source_of("qwen3"), [HELLO], **options)
    assert ("<think>" in rendered.text) == (not enable_thinking)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_by_several_names(field: str) -> None:
    messages = [HELLO, {**ANSWER, field: "Hm."}]
    rendered = template(source_of("qwen3")).render(messages, add_generation_prompt=False)
    assert rendered.text == expected(source_of("qwen3"), messages)
    assert "<think>\nHm.\n</think>" in rendered.text


@pytest.mark.parametrize("name", ["chatml", "llama3_1", "gemma3", "mistral_v7", "qwen3", "zephyr", "deepseek_r1"])
@pytest.mark.parametrize("content", ["It is", "It is ", " It\n"])
def test_continued_messages_equal_transformers(name: str, content: str) -> None:
    messages = [HELLO, {"role": "assistant", "content": content}]
    rendered = template(source_of(name)).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered.text == expected(source_of(name), messages, continue_final_message=True)
    assert rendered.text.rstrip().endswith(content.strip())


@pytest.mark.parametrize(
    ("messages", "options", "param"),
    [
        ([HELLO, ANSWER], {"add_generation_prompt": True}, "continue_final_message"),
        ([HELLO], {}, "continue_final_message"),
        ([HELLO, CALL], {}, "continue_final_message"),
        ([HELLO, {"role": "assistant", "content": {"a": "b"}}], {}, "continue_final_message"),
    ],
)
def test_what_cannot_be_continued(messages: list[dict[str, Any]], options: dict[str, Any], param: str) -> None:
    options = {"add_generation_prompt": False, "continue_final_message": True, **options}
    with pytest.raises(InvalidRequestError, match=param) as error:
        template(source_of("qwen3")).render(messages, **options)
    assert error.value.param == param


def test_a_template_that_leaves_the_last_message_out_cannot_continue_it() -> None:
    with pytest.raises(InvalidRequestError, match="leaves out"):
        template("x").render([ANSWER], add_generation_prompt=False, continue_final_message=True)


PARTS = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]


@pytest.mark.parametrize("name", ["gemma3", "mistral_v7"])
def test_parts_for_templates_that_read_them(name: str) -> None:
    messages = [{"role": "user", "content": PARTS}]
    assert template(source_of(name)).render(messages).text == expected(
        source_of(name), messages, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for message in messages %}{% for part in message['content'] %}[{{ part.text }}]{% endfor %}{% endfor %}",
        "{% set content = messages[0].content %}{% for part in content | list %}[{{ part['text'] }}]{% endfor %}",
        "{% macro show(content) %}{% for part in content %}[{{ part['text'] }}]{% endfor %}{% endmacro %}"
        "{{ show(messages[0].content) }}",
    ],
)
def test_strings_for_templates_that_read_parts_only(source: str) -> None:
    assert template(source).render([{"role": "user", "content": "One"}]).text == "[One]"
    assert template(source).render([{"role": "user", "content": PARTS}]).text == "[One ][two]"


def test_parts_for_templates_that_read_strings() -> None:
    rendered = template(source_of("chatml")).render([{"role": "user", "content": PARTS}], add_generation_prompt=False)
    assert rendered.text == "<|im_start|>user\nOne \ntwo<|im_end|>\n"


def test_fields_that_are_null_are_not_there() -> None:
    message = {**ANSWER, "tool_calls": None, "name": None}
    source = "{{ messages[0].keys() | list }}{{ messages[0].content }}"
    assert template(source).render([message]).text == "['role', 'content']Hello!  "
    assert template(source).render([{"role": "assistant", "tool_calls": []}]).text == "['role', 'content']"


@pytest.mark.parametrize(("arguments", "shown"), [('{"a": 1}', "{'a': 1}"), ("", "{}"), ("{a", "{a"), ("[1]", "[1]")])
def test_arguments_of_tool_calls(arguments: str, shown: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    source = "{{ messages[0].tool_calls[0].function.arguments }}"
    assert template(source).render([{"role": "assistant", "tool_calls": [call]}]).text == shown


def test_helpers() -> None:
    source = (
        "{{ strftime_now('%Y') }} {{ {'b': 'é<', 'a': [1]} | tojson(ensure_ascii=true, indent=1, sort_keys=true) }}"
    )
    data = json.dumps({"b": "é<", "a": [1]}, indent=1, sort_keys=True)
    assert template(source).render([HELLO]).text in [f"{datetime.now().year - n} {data}" for n in range(2)]
    assert template("{{ 'é' | tojson }}").render([HELLO]).text == '"é"'
    source = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i ~ '.' }}{% endfor %}"
    assert template(source).render([HELLO]).text == "0.1."
    source = "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}{{ unk_token }}{{ bos_token }}"
    assert template(source, tokens={"unk_token": "<u>"}).render([HELLO]).text == "1False<u><s>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a,b' | replace(',', ';') }}{{ 'aXbX' | replace('X', '', 1) }}{{ [1, 'a'] | join('-') }}",
        "{{ [{'a': 'x'}, {'a': 'y'}] | join(', ', attribute='a') }}{{ 'x\ny\n\nz' | indent }}",
        "{{ 'x\ny' | indent(2, true) }}{{ '' | indent }}{{ 'x\n' | indent(3) }}",
        "{{ 'a\n\nb' | indent('> ', blank=true) }}{{ '%s=%d' | format('a', 3) }}{{ '%(a)s' | format(a=1) }}",
        "{{ [1, 2, 3] | sum }}{{ [{'a': 1.5}] | sum(attribute='a') }}{{ 'ab' | center(9) }}{{ 3.14159 | round(2) }}",
        "{{ 'a{}b{x}'.format(1, x='y') }}{{ ', '.join(['a', 'b']) }}{{ 'a' * 3 + 'b' ~ 4 ~ none }}{{ 2 ** 10 % 7 }}",
        "{{ ['b', 'a'] | map('upper') | sort | list }}{{ {'a': 1} | items | list }}{{ 'ab' | list | reverse | list }}",
        "{% for k, v in {'a': 1, 'b': 2}.items() if v > 1 recursive %}{{ k }}{{ loop.length }}{% endfor %}",
        "{% for x in [1, 2, 3] %}{{ loop.revindex }}{{ loop.nextitem }}{{ loop.last }}{% else %}-{% endfor %}",
        "{% set ns = namespace(a=1) %}{% for x in [1, 2] %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}",
        "{% macro m(x) %}<{{ x }}>{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(2) %}c{% endcall %}",
        "{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}{{ x[::-1] }}{{ nothing }}{{ none }}",
    ],
)
def test_the_sandbox_changes_nothing(source: str) -> None:
    assert template(source).render([HELLO], add_generation_prompt=False).text == expected(source, [HELLO])


def growing(first: str, grown: str, then: str = "", times: int = 99) -> str:
    """A template that replaces `ns.x` many times."""
    loop = f"{{% for i in range({times}) %}}{grown}{{% endfor %}}"
    return f"{{% set ns = namespace(x={first}) %}}{loop}{then}"


NESTED = "{% set ns.x = [ns.x, ns.x] %}"  # soon far too long as text, though short in memory
EMPTY_LOOP = "{% for i in r %}{% endfor %}"
HOSTILE = {
    "a class": "{{ ''.__class__.__mro__ }}",
    "a class by filter": "{{ (''|attr('__class__')).__mro__ }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "code of a macro": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "internals": "{{ self._TemplateReference__context.environment.finalize }}",
    "a namespace's class": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a namespace's class at once": "{% set ns = namespace(__class__=1) %}",
    "changing messages": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "a format's class": "{{ '{0.__class__.__mro__}'.format('') }}",
    "a format's class by format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested lists": "{% set r = range(9999)|list %}{% for i in r %}{% for j in r %}" + EMPTY_LOOP + "{% endfor %}" * 2,
    "a long string": "{{ 'a' * 10**10 }}",
    "a long list": "{{ [1] * 10**10 }}",
    "a string that doubles": growing("'a'", "{% set ns.x = ns.x + ns.x %}"),
    "a string that doubles by ~": growing("'a'", "{% set ns.x = ns.x ~ ns.x %}"),
    "a string that doubles in a block": growing("'a'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "a list that doubles": growing("[1]", NESTED, "{{ ns.x }}"),
    "the same as JSON": growing("[1]", NESTED, "{% set y = ns.x | tojson %}"),
    "the same as a string": growing("[1]", NESTED, "{% set y = ns.x | string %}"),
    "the same as a string in a list": growing("[1]", NESTED, "{% set y = [ns.x] | map('string') | list %}"),
    "the same joined": growing("[1]", NESTED, "{% set y = ns.x | join %}"),
    "the same formatted": growing("[1]", NESTED, "{% set y = '%s' % ns.x %}"),
    "the same hidden in a namespace": growing("[1]", NESTED, "{% set y = '%s' % (namespace(x=ns.x),) %}{{ y.z.z }}"),
    "a long list that grows": growing("range(99999) | list", "{% set ns.x = ns.x + ns.x %}"),
    "much text": "{% for i in range(99999) %}{{ 'abcdefgh' * 100 }}{% endfor %}",
    "much constant text": "{% for i in range(99999) %}" + "abcdefgh" * 100 + "{% endfor %}",
    "many long strings": growing("[]", "{% set ns.x = ns.x + ['a' * 10**6 ~ i] %}", times=99999),
    "a wide string": "{{ 'a'.ljust(10**10) }}",
    "a wide filter": "{{ 'a' | center(10000000000) }}",
    "a wide format": "{{ '{:10000000000}'.format(1) }}",
    "a wide % format": "{{ '%10000000000d' % 1 }}",
    "a computed width": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "a wide indent": "{{ 'a\nb' | indent(10**10) }}",
    "a wide JSON": "{{ [1] | tojson(indent=10**10) }}",
    "many slices": "{{ [1] | slice(10**10) | list }}",
    "replacing": "{% set a = 'a' * 10**6 %}{{ a.replace('a', a) }}",
    "replacing by filter": "{% set a = 'a' * 10**6 %}{{ a | replace('a', a) }}",
    "joining": "{% set a = 'a' * 10**6 %}{{ a.join(a) }}",
    "joining by filter": "{% set a = 'a' * 10**6 %}{{ a | list | join(a) }}",
    "formatting much by format_map": "{% set a = 'a' * 10**6 %}{{ ('{a}' * 10**5).format_map({'a': a}) }}",
    "formatting much": "{% set a = 'a' * 10**6 %}{{ ('{0}' * 10**5).format(a) }}",
    "adding lists up": "{{ [[1], [2]] | sum(start=[]) }}",
    "a large number": "{{ 10 ** (10 ** 10) }}",
    "a number that grows": growing("9", "{% set ns.x = ns.x * ns.x %}"),
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "endless loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "a long sum": "{{ 1" + "+1" * 20000 + " }}",
    "no template": "{% for %}",
    "an unknown filter": "{{ 'a' | nothing }}",
    "nothing there": "{{ nothing.at.all }}",
    "a wrong type": "{{ 1 + 'a' }}",
    "a division by zero": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidRequestError, match=r"^messages: the model's chat template refused them: .") as error:
        template(HOSTILE[name], max_seconds=0.3).render([HELLO])
    assert time.monotonic() - begin < 5.0
    assert error.value.param == "messages"
    assert len(error.value.message) < 700


def test_the_reason_is_told() -> None:
    with pytest.raises(InvalidRequestError, match="refused them: Conversation roles must alternate"):
        template(source_of("gemma3")).render([HELLO, HELLO])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "must not be empty"),
        ("hello", "must be a list"),
        (["hello"], r"messages\[0\] must be an object"),
        ([HELLO, {"content": "x"}], r"messages\[1\] must be an object with a role"),
        ([{"role": "user", "content": 1}], r"messages\[0\].content must be a string"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], r"content\[0\] .* got 'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"content\[0\].text must be a string"),
        ([{"role": "user", "content": [1]}], r"content\[0\] must be a part"),
        ([{"role": "user", "content": "x", "more": object()}], "must consist of JSON values"),
        ([{"role": "user", "content": "x", "more": {1: 2}}], "must consist of JSON values"),
        ([{"role": "user", "content": "x" * (5 << 20)}], "more than 4194304 characters"),
    ],
)
def test_wrong_messages(messages: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as error:
        template(source_of("chatml")).render(messages)
    assert error.value.param == "messages"


def test_deep_data() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(InvalidRequestError, match="levels deep"):
        template(source_of("chatml")).render([{"role": "user", "content": "x", "more": value}])
    with pytest.raises(InvalidRequestError, match="tools must be nested"):
        template(source_of("chatml")).render([HELLO], tools=[{"type": value}])


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "continue_final_message"])
def test_variables_leave_the_arguments_alone(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"must not set {name}") as error:
        template(source_of("chatml")).render([HELLO], tools=TOOLS, variables={name: []})
    assert error.value.param == "chat_template_kwargs"


def test_variables() -> None:
    rendered = template("{{ a }}{{ b }}{{ bos_token }}").render([HELLO], a=1, variables={"a": 2, "b": 3})
    assert rendered.text == "23<s>"
    assert template("{{ source }}").render([HELLO], variables={"source": "x", "self": "y"}).text == "x"
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs must consist of JSON values"):
        template("x").render([HELLO], variables={"a": object()})


def test_the_template_for_tools() -> None:
    chat_template = template("plain", tool_source="tools: {{ tools | length }}")
    assert chat_template.render([HELLO]).text == "plain"
    assert chat_template.render([HELLO], tools=[]).text == "plain"
    assert chat_template.render([HELLO], tools=TOOLS).text == "tools: 2"


def test_threads_share_a_template() -> None:
    chat_template = template(source_of("qwen3"))
    chats = [[{"role": "user", "content": f"Hello {i}"}] for i in range(8)]
    texts: list[list[str]] = [[] for _ in chats]

    def work(index: int) -> None:
        for _ in range(20):
            texts[index].append(chat_template.render(chats[index]).text)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(chats))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, chat in enumerate(chats):
        assert texts[index] == [expected(source_of("qwen3"), chat, add_generation_prompt=True)] * 20


CALLED = [
    HELLO,
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]},
    {"role": "tool", "content": "noon"},
]


def test_past_calls_do_not_fail_where_the_template_knows_of_none() -> None:
    rendered = template(source_of("chatml")).render(CALLED)
    assert "noon" in rendered.text
    assert "None" not in rendered.text


def test_past_calls_are_rendered_by_the_template_for_tools() -> None:
    twofold = ChatTemplate(
        source_of("chatml"),
        tool_source="{% for m in messages %}{{ m.tool_calls is defined and m.content is none }} {% endfor %}",
    )
    assert twofold.render(CALLED).text == "False True False "
    assert twofold.render([HELLO]).text == template(source_of("chatml")).render([HELLO]).text
