"""Every cap on a request, at the server's door and at the engine's: its bounds are taken, one step beyond is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from fastapi.exceptions import RequestValidationError

from roseinfer.constraints import limits as grammar_limits
from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.limits import CAPS, Cap
from roseinfer.core.messages import Grammar
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.engine.checks import check_prompt_logprobs, check_request
from roseinfer.server.json_body import parse_json, read_body
from roseinfer.server.middleware.body_limit import MAX_BODY_BYTES
from roseinfer.server.middleware.head_limit import MAX_HEAD_BYTES
from roseinfer.server.openai.grammars import check_schema_depth
from tests.chaos.malformed_bodies import ROUTES
from tests.fake_engine import make_request

AnyCap = Cap[int] | Cap[float]
Door = Callable[[Any], object]  # raises for a value that it does not take

VOCAB_SIZE = 2**20
WITH_LOGPROBS = ["message.output_text.logprobs"]
COMPLETIONS, CHATS, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"


# -- doors --------------------------------------------------------------------------------------------------


def body(path: str, make: Callable[[Any], dict[str, Any]]) -> Door:
    """The server's, where the body says what `make` makes of a value, or of a count."""
    route = ROUTES[path]
    return lambda value: read_body(route.model, json.dumps({**route.small, **make(value)}).encode())


def field(name: str, path: str = COMPLETIONS) -> Door:
    return body(path, lambda value: {name: value})


def listed(name: str, item: Any, path: str = COMPLETIONS) -> Door:
    return body(path, lambda count: {name: [item] * count})


def text(name: str, path: str = COMPLETIONS) -> Door:
    return body(path, lambda count: {name: "a" * count})


def raw(make: Callable[[int], str]) -> Door:
    return lambda count: parse_json(make(count).encode())


def params(make: Callable[[Any], dict[str, Any]]) -> Door:
    """Of whoever makes `SamplingParams`."""
    return lambda value: SamplingParams(**make(value))


def param(name: str, **more: Any) -> Door:
    return params(lambda value: {name: value, **more})


def request(make: Callable[[Any], dict[str, Any]]) -> Door:
    """The engine's."""

    def door(value: Any) -> None:
        changed = msgspec.structs.replace(make_request("a", [1, 2]), **make(value))
        check_request(changed, VOCAB_SIZE, limits.INT32)

    return door


def tool(index: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{index}"}}


def schema(depth: int) -> Any:
    return {} if depth == 1 else {"a": schema(depth - 1)}


DOORS: list[tuple[AnyCap, Door]] = [
    (limits.MAX_TOKENS, field("max_tokens")),
    (limits.MAX_TOKENS, field("max_new_tokens", "/generate")),
    (limits.MAX_TOKENS, param("max_tokens")),
    (limits.MAX_TOKENS, request(lambda value: {"max_tokens": value})),
    (limits.ANSWER_TOKENS, field("max_completion_tokens", CHATS)),
    (limits.ANSWER_TOKENS, field("max_tokens", MESSAGES)),
    (limits.ANSWER_TOKENS, field("max_output_tokens", "/v1/responses")),
    (limits.MIN_TOKENS, field("min_tokens")),
    (limits.MIN_TOKENS, param("min_tokens", max_tokens=limits.INT32)),
    (limits.MIN_TOKENS, request(lambda value: {"min_tokens": value})),
    (limits.THINKING_TOKENS, body(MESSAGES, lambda value: {"thinking": {"type": "enabled", "budget_tokens": value}})),
    (limits.TOOL_CALLS, field("max_tool_calls", "/v1/responses")),
    (limits.CHOICES, field("n")),
    (limits.CHOICES, field("n", CHATS)),
    (limits.CHOICE_INDEX, request(lambda value: {"choice": value})),
    (limits.TOKEN_ID, body(COMPLETIONS, lambda value: {"stop_token_ids": [value]})),
    (limits.TOKEN_ID, body("/detokenize", lambda value: {"tokens": [value]})),
    (limits.TOKEN_ID, body(COMPLETIONS, lambda value: {"prompt": [1, value]})),
    (limits.TOKEN_ID, params(lambda value: {"allowed_token_ids": (value,)})),
    (limits.TOKEN_ID, params(lambda value: {"logit_bias": {value: 1.0}})),
    (limits.TEMPERATURE, field("temperature")),
    (limits.TEMPERATURE, field("temperature", "/generate")),
    (limits.TEMPERATURE, param("temperature")),
    (limits.TEMPERATURE, request(lambda value: {"temperature": value})),
    (limits.MESSAGES_TEMPERATURE, field("temperature", MESSAGES)),
    (limits.TOP_P, field("top_p")),
    (limits.TOP_P, field("top_p", MESSAGES)),
    (limits.TOP_P, param("top_p")),
    (limits.TOP_P, request(lambda value: {"top_p": value})),
    (limits.MIN_P, field("min_p")),
    (limits.MIN_P, param("min_p")),
    (limits.MIN_P, request(lambda value: {"min_p": value})),
    (limits.TOP_K, field("top_k", "/generate")),
    (limits.TOP_K, param("top_k")),
    (limits.TOP_K, request(lambda value: {"top_k": value})),
    (limits.OPEN_TOP_K, field("top_k")),
    (limits.SEED, field("seed", "/generate")),
    (limits.SEED, param("seed")),
    (limits.SEED, request(lambda value: {"seed": value})),
    (limits.SIGNED_SEED, field("seed")),
    *((cap, field(cap.name)) for cap in (limits.PRESENCE_PENALTY, limits.FREQUENCY_PENALTY, limits.REPETITION_PENALTY)),
    *((cap, param(cap.name)) for cap in (limits.PRESENCE_PENALTY, limits.FREQUENCY_PENALTY, limits.REPETITION_PENALTY)),
    (limits.REPETITION_PENALTY, request(lambda value: {"repetition_penalty": value})),
    (limits.LOGIT_BIAS, body(COMPLETIONS, lambda value: {"logit_bias": {"1": value}})),
    (limits.LOGIT_BIAS, params(lambda value: {"logit_bias": {1: value}})),
    (limits.LOGIT_BIAS, request(lambda value: {"logit_bias": {1: value}})),
    (limits.BIASED_TOKENS, body(COMPLETIONS, lambda count: {"logit_bias": {str(i): 1 for i in range(count)}})),
    (limits.BIASED_TOKENS, params(lambda count: {"logit_bias": dict.fromkeys(range(count), 1.0)})),
    (limits.BIASED_TOKENS, request(lambda count: {"logit_bias": dict.fromkeys(range(count), 1.0)})),
    (limits.STOP_TOKEN_IDS, listed("stop_token_ids", 1)),
    (limits.STOP_TOKEN_IDS, params(lambda count: {"stop_token_ids": (1,) * count})),
    (limits.ALL_STOP_TOKEN_IDS, request(lambda count: {"stop_token_ids": [1] * count})),
    (limits.ALLOWED_TOKEN_IDS, params(lambda count: {"allowed_token_ids": (1,) * count})),
    (limits.BAD_WORDS, listed("bad_words", "a")),
    (limits.BAD_WORD_CHARS, body(COMPLETIONS, lambda count: {"bad_words": ["a" * count]})),
    (limits.BAD_WORD_SPELLINGS, params(lambda count: {"bad_words_ids": ((1,),) * count})),
    (limits.BAD_WORD_SPELLINGS, request(lambda count: {"bad_words_ids": [[1]] * count})),
    (limits.BAD_WORD_TOKENS, request(lambda count: {"bad_words_ids": [[1] * count]})),
    (limits.PRIORITY, field("priority")),
    (limits.PRIORITY, param("priority")),
    (limits.PRIORITY, request(lambda value: {"priority": value})),
    (limits.CACHE_SALT_CHARS, text("cache_salt")),
    (limits.TENANT_CHARS, request(lambda count: {"tenant": "a" * count})),
    (limits.REQUEST_ID_CHARS, request(lambda count: {"request_id": "a" * count})),
    (limits.LOGPROBS, field("logprobs")),
    (limits.LOGPROBS, field("top_logprobs", CHATS)),
    (limits.LOGPROBS, body("/v1/responses", lambda value: {"include": WITH_LOGPROBS, "top_logprobs": value})),
    (limits.LOGPROBS, param("logprobs")),
    (limits.PROMPT_LOGPROBS, field("prompt_logprobs")),
    (limits.PROMPT_LOGPROBS, param("prompt_logprobs")),
    (limits.PROMPT_LOGPROBS_IN_ALL, lambda count: check_prompt_logprobs(0, count)),
    (limits.STOP_STRINGS, listed("stop", "a")),
    (limits.STOP_STRINGS, listed("stop_sequences", "a", MESSAGES)),
    (limits.STOP_CHARS, text("stop")),
    (limits.STOP_CHARS, body(COMPLETIONS, lambda count: {"stop": ["a" * count]})),
    (limits.GRAMMAR_BYTES, params(lambda count: {"grammar": Grammar("lark", "a" * count)})),
    (limits.REGEX_BYTES, params(lambda count: {"grammar": Grammar("regex", "a" * count)})),
    (limits.REGEX_BYTES, request(lambda count: {"grammar": Grammar("regex", "a" * count)})),
    (limits.SCHEMA_DEPTH, lambda depth: check_schema_depth(schema(depth), "grammar")),
    (limits.GRAMMAR_CHOICES, body(COMPLETIONS, lambda count: {"structured_outputs": {"choice": ["a"] * count}})),
    (limits.PROMPTS, listed("prompt", "a")),
    (limits.PROMPTS, listed("prompt", [1])),
    (limits.TOKENIZED_CHARS, text("prompt", "/tokenize")),
    (limits.TOOLS, body(CHATS, lambda count: {"tools": [tool(index) for index in range(count)]})),
    (
        limits.FUNCTION_NAME_CHARS,
        body(CHATS, lambda count: {"tools": [{**tool(0), "function": {"name": "a" * count}}]}),
    ),
    (limits.METADATA, body(CHATS, lambda count: {"metadata": {str(index): "" for index in range(count)}})),
    (limits.METADATA, body("/v1/responses", lambda count: {"metadata": {str(index): "" for index in range(count)}})),
    (limits.METADATA_KEY_CHARS, body("/v1/responses", lambda count: {"metadata": {"a" * count: ""}})),
    (limits.METADATA_CHARS, body("/v1/responses", lambda count: {"metadata": {"a": "a" * count}})),
    (limits.JSON_DEPTH, raw(lambda count: "[" * count + "]" * count)),
    (limits.JSON_CONTAINERS, raw(lambda count: "[" + ",".join(["[]"] * (count - 1)) + "]")),
    (limits.OBJECT_MEMBERS, raw(lambda count: json.dumps(dict.fromkeys(map(str, range(count)))))),
    (limits.LIST_ITEMS, raw(lambda count: json.dumps([0] * count))),
    (limits.OTHER_LIST_ITEMS, listed("messages", {"role": "user", "content": ""}, CHATS)),
]
# A list of ids in a body ends where any list does.
LIST_CAPS = (limits.PROMPT_IDS, limits.DETOKENIZED_IDS, limits.ALLOWED_TOKEN_IDS)
# What the compiler of grammars and the web server check: their own tests look at the bounds.
ELSEWHERE: dict[AnyCap, float] = {
    limits.LARK_SYMBOLS: grammar_limits.MAX_LARK_SYMBOLS,
    limits.GBNF_BYTES: grammar_limits.MAX_GBNF_BYTES,
    limits.GBNF_RULES: grammar_limits.MAX_GBNF_RULES,
    limits.GRAMMAR_SECONDS: grammar_limits.MAX_COMPILE_SECONDS,
    limits.HEAD_BYTES: MAX_HEAD_BYTES,
    limits.BODY_BYTES: MAX_BODY_BYTES,
}

CASES = [pytest.param(cap, door, id=f"{index}-{cap.name}") for index, (cap, door) in enumerate(DOORS)]


def refusal_of(door: Door, value: Any) -> str | None:
    """What it says, with the field's name."""
    try:
        door(value)
    except RequestValidationError as error:
        return "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
    except InvalidRequestError as error:
        return f"{error.param}: {error.message}"
    return None


def bounds(cap: AnyCap) -> tuple[list[float], list[float]]:
    """Values that are taken, and values that are not, one step beyond."""
    step = 1 if isinstance(cap.most, int) else 1e-6
    least = cap.least + step if cap.is_open else cap.least
    beyond = [cap.most + step, *([least - step] if not cap.unit else [])]
    return [max(least, 1) if cap.unit else least, cap.most], beyond


@pytest.mark.parametrize(("cap", "door"), CASES)
def test_the_bounds(cap: AnyCap, door: Door) -> None:
    taken, beyond = bounds(cap)
    for value in taken:
        assert refusal_of(door, value) is None
    for value in beyond:
        refusal = refusal_of(door, value)
        assert refusal is not None
        limit = cap.most if value > cap.most else cap.least
        assert (str(limit) if isinstance(limit, int) else f"{limit:g}") in refusal


@pytest.mark.parametrize(("cap", "door"), [case for case in CASES if not case.values[0].unit])
def test_what_is_no_number(cap: AnyCap, door: Door) -> None:
    wrong: list[Any] = ["1", True, [], {}, 10**400, -(10**400), *([1.5] if isinstance(cap.most, int) else [])]
    for value in wrong:
        if not (isinstance(value, list | dict) and cap is limits.TOKEN_ID):  # cannot be the key of a bias
            assert refusal_of(door, value) is not None


FLOATS = [case for case in CASES if isinstance(case.values[0].most, float)]


@pytest.mark.parametrize(("cap", "door"), FLOATS)
@pytest.mark.parametrize("value", [1e39, -1e39, 1e308, float("inf"), float("-inf"), float("nan")])
def test_numbers_that_float32_does_not_hold(cap: AnyCap, door: Door, value: float) -> None:
    refusal = refusal_of(door, value)
    assert refusal is not None
    assert cap.name in refusal or "not valid JSON" in refusal


def test_a_field_is_named() -> None:
    for cap, door in DOORS:
        refusal = refusal_of(door, cap.most + 1)
        assert refusal is not None
        names = {cap.name, "max_new_tokens", "max_tokens", "max_output_tokens", "stop_token_ids", "tokens", "prompt"}
        names |= {"allowed_token_ids", "logit_bias", "thinking", "stop_sequences", "top_logprobs", "messages"}
        assert refusal.startswith("None: ") == (cap.name == "body" and cap is not limits.OTHER_LIST_ITEMS)
        assert cap.name == "body" or any(name in refusal for name in names)


def test_every_cap_is_looked_at() -> None:
    looked_at = {id(cap) for cap in (*(cap for cap, _ in DOORS), *LIST_CAPS, *ELSEWHERE)}
    assert [cap for cap in CAPS if id(cap) not in looked_at] == []


@pytest.mark.parametrize("cap", LIST_CAPS, ids=lambda cap: cap.name)
def test_lists_of_ids(cap: Cap[int]) -> None:
    """More than a list may hold at all, so that nothing looks at them."""
    assert cap.most == limits.LIST_ITEMS.most


def test_what_others_check() -> None:
    for cap, value in ELSEWHERE.items():
        assert cap.most == value


def test_what_the_rules_say() -> None:
    assert (limits.CHOICES.least, limits.CHOICES.most) == (1, 16)
    assert (limits.STOP_STRINGS.most, limits.STOP_CHARS.most, limits.STOP_TOKEN_IDS.most) == (4, 256, 64)
    assert (limits.BIASED_TOKENS.most, limits.LOGIT_BIAS.least, limits.LOGIT_BIAS.most) == (1024, -100, 100)
    assert (limits.LOGPROBS.most, limits.PROMPT_LOGPROBS_IN_ALL.most) == (20, 4_000_000)
    assert (limits.TEMPERATURE.least, limits.TEMPERATURE.most) == (0, 2)
    assert (limits.PRESENCE_PENALTY.least, limits.FREQUENCY_PENALTY.most) == (-2, 2)
    assert (limits.GRAMMAR_BYTES.most, limits.SCHEMA_DEPTH.most, limits.REGEX_BYTES.most) == (65_536, 32, 1024)
    assert (limits.GRAMMAR_SECONDS.most, limits.JSON_DEPTH.most) == (2, 64)
    assert (limits.BODY_BYTES.most, limits.HEAD_BYTES.most) == (8 * 2**20, 16 * 2**10)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_lone_surrogates(text: str) -> None:
    for make in (lambda: SamplingParams(cache_salt=text), lambda: SamplingParams(grammar=Grammar("regex", text))):
        with pytest.raises(InvalidRequestError, match="lone surrogate"):
            make()
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        parse_json(json.dumps({"prompt": text}).encode())


def test_numbers_beyond_a_double_in_what_is_free() -> None:
    small = ROUTES[CHATS].small
    content = json.dumps({**small, "chat_template_kwargs": {"a": ["@"]}}).replace('"@"', "1e400").encode()
    with pytest.raises(InvalidRequestError, match="beyond what a double holds"):
        read_body(ROUTES[CHATS].model, content)
