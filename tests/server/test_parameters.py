"""Every parameter of completions and chats: what it takes, what it refuses by name, and that it does something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake_model import BOS, EOS, RecitingProgram, _logits
from tests.server.byte_server import byte_engine
from tests.server.live import serve
from tests.server.replies import CHAT, CHATS, COMPLETIONS, Body, ask, ask_both, ask_streaming, prompt_of

PATHS = [COMPLETIONS, CHATS]
INT32 = 2**31 - 1
HUGE = 10**400
GREEDY: Body = {"temperature": 0, "max_tokens": 24, "return_token_ids": True}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with byte_engine() as engine, serve(engine) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


# -- what is taken and what is refused ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """`beside`: what else a body must say."""

    name: str
    taken: list[Any]
    refused: list[Any]
    beside: Body = field(default_factory=dict)
    paths: tuple[str, ...] = (COMPLETIONS, CHATS)


def number(name: str, low: float, high: float, *, below: float, above: float, **more: Any) -> Parameter:
    return Parameter(name, [low, high], [below, above, "1", True, [], {}, HUGE, -HUGE], **more)


def integer(name: str, low: int, high: int, **more: Any) -> Parameter:
    refused = [low - 1, high + 1, low + 0.5, str(low), True, [], {}, HUGE, -HUGE]
    return Parameter(name, [low, high], refused, **more)


def switch(name: str, **more: Any) -> Parameter:
    return Parameter(name, [True, False], [0, 1, "true", [], {}], **more)


def unsupported(name: str, *values: Any, **more: Any) -> Parameter:
    return Parameter(name, [], list(values), **more)


ONLY_COMPLETIONS: Any = {"paths": (COMPLETIONS,)}
ONLY_CHATS: Any = {"paths": (CHATS,)}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}

PARAMETERS = [
    number("temperature", 0, 2, below=-1e-9, above=2.001),
    number("top_p", 1e-9, 1, below=0, above=1.001),
    number("min_p", 0, 1, below=-1e-9, above=1.001),
    number("presence_penalty", -2, 2, below=-2.001, above=2.001),
    number("frequency_penalty", -2, 2, below=-2.001, above=2.001),
    number("repetition_penalty", 0.01, 10, below=0.009, above=10.001),
    integer("top_k", -1, INT32),
    integer("n", 1, 16),
    integer("seed", -(2**63), 2**63 - 1),
    integer("priority", -1_000_000, 1_000_000),
    integer("prompt_logprobs", 0, 20),
    integer("logprobs", 0, 20, **ONLY_COMPLETIONS),
    integer("top_logprobs", 0, 20, beside={"logprobs": True}, **ONLY_CHATS),
    Parameter("max_tokens", [0, 1, 400], [-1, 512, INT32, INT32 + 1, 1.5, "1", True, HUGE]),
    Parameter("max_completion_tokens", [1, 400], [0, -1, 512, INT32, INT32 + 1, 1.5, "1", True], **ONLY_CHATS),
    Parameter("min_tokens", [0, 16], [-1, 17, INT32 + 1, 1.5, "1", True], beside={"max_tokens": 16}),
    Parameter("best_of", [1], [0, 2, 1.5, "1", True], **ONLY_COMPLETIONS),
    Parameter("best_of", [3], [1, 2, 4], beside={"n": 3}, **ONLY_COMPLETIONS),
    Parameter(
        "stop",
        ["a", "x" * 256, ["a"] * 4, []],
        ["", "x" * 257, ["a"] * 5, [""], 1, [1], {}, True],
    ),
    Parameter("stop_token_ids", [[], [0], [EOS] * 64], [[258], [-1], [0] * 65, ["1"], [True], [1.5], 1, "1", {}]),
    Parameter("allowed_token_ids", [[0], [EOS]], [[], [258], [-1], ["1"], [True], 1, "1", {}]),
    Parameter(
        "logit_bias",
        [{}, {"0": 100}, {"257": -100}],
        [{"258": 1}, {"-1": 1}, {"a": 1}, {"0": 100.1}, {"0": -100.1}, {"0": "1"}, {"0": None}, {"0": HUGE}, [], 1],
    ),
    Parameter("bad_words", [[], ["a"], ["x" * 64]], [[""], ["x" * 257], ["a"] * 65, [1], "a", {}, True]),
    switch("ignore_eos"),
    switch("include_stop_str_in_output"),
    switch("skip_special_tokens"),
    switch("add_special_tokens"),
    switch("return_token_ids"),
    switch("stream"),
    switch("echo", **ONLY_COMPLETIONS),
    Parameter("echo", [False], [True, 1, "a"], **ONLY_CHATS),
    Parameter("logprobs", [True, False], [0, 1, "true", []], **ONLY_CHATS),
    Parameter("top_logprobs", [], [1], **ONLY_CHATS),
    Parameter("stream_options", [{}, {"include_usage": True}], [1, [], "a", {"include_usage": 1}], {"stream": True}),
    Parameter("stream_options", [], [{}, {"include_usage": True}]),
    Parameter("prompt_logprobs", [], [1], {"stream": True}),
    Parameter("cache_salt", ["a", "ß" * 256], ["", "a" * 257, 1, [], True]),
    Parameter("user", ["", "me"], [1, [], True]),
    Parameter("model", ["bytes", ""], [1, [], True]),
    Parameter("response_format", [{"type": "text"}], [{"type": "xml"}, {}, [], 1, "text", {"type": "json_schema"}]),
    Parameter(
        "structured_outputs",
        [{"regex": "a+"}, {"choice": ["a"]}, {"json": SCHEMA}, {"grammar": 'start: "a"'}],
        [{}, [], 1, "a", {"regex": "("}, {"choice": []}, {"json": "{"}, {"grammar": "?"}, {"regex": "a", "json": {}}],
    ),
    Parameter(
        "prompt",
        ["", "Hi", ["Hi", "Ho"], [72, 105], [[72], [105]]],
        [None, [], [[]], 1, {}, True, ["Hi", 1], [1, "Hi"], [258], [-1], [1.5], "x" * 512, [0] * 512],
        **ONLY_COMPLETIONS,
    ),
    Parameter(
        "messages",
        [
            CHAT,
            [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            [{"role": "developer", "content": "a"}],
        ],
        [
            *(None, [], 1, {}, "Hi", [1], [{}], [{"role": "user"}], [{"role": "king", "content": "a"}]),
            [{"role": "user", "content": 1}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}],
            [{"role": "user", "content": "x" * 512}],
        ],
        **ONLY_CHATS,
    ),
    Parameter("tools", [[]], [[TOOL], [TOOL, TOOL], [{}], 1, {}, [{"type": "web_search"}]], **ONLY_CHATS),
    Parameter("tool_choice", ["none", "auto"], ["required", "any", 1, {}, TOOL], **ONLY_CHATS),
    switch("parallel_tool_calls", **ONLY_CHATS),
    switch("add_generation_prompt", **ONLY_CHATS),
    Parameter("continue_final_message", [False], [True, 1, "a"], **ONLY_CHATS),
    Parameter("chat_template_kwargs", [{}, {"extra": "a"}], [1, [], "a", {"messages": []}], **ONLY_CHATS),
    Parameter("reasoning_effort", ["none"], ["high", "wild", 1], **ONLY_CHATS),
    Parameter("modalities", [["text"]], [["audio"], "text", 1], **ONLY_CHATS),
    Parameter("store", [False], [True, 1], **ONLY_CHATS),
    Parameter("service_tier", ["auto", "default"], ["flex", 1], **ONLY_CHATS),
    Parameter("metadata", [{}, {"a": "b"}], [{"a": 1}, [], 1], **ONLY_CHATS),
    Parameter("use_beam_search", [False], [True, 1]),
    unsupported("suffix", "a", "", 1, **ONLY_COMPLETIONS),
    unsupported("truncate_prompt_tokens", 1, -1),
    unsupported("logits_processors", [], ["a"]),
    *(unsupported(name, {}, "a") for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")),
    *(unsupported(name, {}, "a", **ONLY_CHATS) for name in ("audio", "prediction", "functions", "function_call")),
    *(unsupported(name, {}, "a", **ONLY_CHATS) for name in ("web_search_options", "chat_template", "documents")),
]
CASES = [
    pytest.param(path, parameter, id=f"{path.split('/')[2]}-{parameter.name}-{index}")
    for index, parameter in enumerate(PARAMETERS)
    for path in parameter.paths
]


@pytest.mark.parametrize(("path", "parameter"), CASES)
def test_what_is_taken_and_what_is_refused(client: httpx.Client, path: str, parameter: Parameter) -> None:
    base: Body = {"max_tokens": 2, **prompt_of(path), **parameter.beside}
    if parameter.name == "max_completion_tokens":
        del base["max_tokens"]
    for value in parameter.taken:
        reply = client.post(path, json={**base, parameter.name: value})
        assert reply.status_code == 200, (value, reply.text)
    for value in parameter.refused:
        reply = client.post(path, json={**base, parameter.name: value})
        assert reply.status_code == 400, (value, reply.text)
        param = reply.json()["error"]["param"]
        assert param is not None, (value, reply.text)
        assert param == parameter.name or param.startswith(parameter.name + "."), (value, reply.text)


@pytest.mark.parametrize("path", PATHS)
def test_null_is_the_same_as_nothing(client: httpx.Client, path: str) -> None:
    names = {each.name for each in PARAMETERS if path in each.paths} - {"prompt", "messages", "seed", "max_tokens"}
    body = {**prompt_of(path), "seed": 5, "max_tokens": 12}
    assert ask(client, path, {**body, **dict.fromkeys(names)}).choices == ask(client, path, body).choices


NUMBERS = [each.name for each in PARAMETERS if HUGE in each.refused and COMPLETIONS in each.paths]


def complete_with(client: httpx.Client, name: str, written: str) -> Body:
    """The error of a body that has `written` for a value."""
    content = f'{{"prompt": "Hi", "{name}": {written}}}'
    reply = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    error: Body = reply.json()["error"]
    return error


@pytest.mark.parametrize("written", ["1e999", "-1e999"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite(client: httpx.Client, name: str, written: str) -> None:
    assert complete_with(client, name, written)["param"] == name


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_number(client: httpx.Client, written: str) -> None:
    assert "not valid JSON" in complete_with(client, "temperature", written)["message"]


# -- what they do ---------------------------------------------------------------------------------------------------

Edit = Callable[[np.ndarray, list[int], list[int]], None]


def recited(prompt_ids: list[int], count: int, edit: Edit) -> list[int]:
    """The greedy answer, `edit(logits, prompt, answer)` being all that a parameter does to it."""
    written: list[int] = []
    for position in range(len(prompt_ids), len(prompt_ids) + count):
        logits = _logits((prompt_ids + written)[-1], position).astype(np.float64)
        edit(logits, prompt_ids, written)
        token_id = int(logits.argmax())
        written.append(token_id)
        if token_id == EOS:
            return written[:-1]
    return written


def penalise(presence: float, frequency: float, repetition: float) -> Edit:
    def edit(logits: np.ndarray, prompt: list[int], written: list[int]) -> None:
        for token_id in set(prompt + written):
            logits[token_id] *= 1 / repetition if logits[token_id] > 0 else repetition
        for token_id in set(written):
            logits[token_id] -= presence + frequency * written.count(token_id)

    return edit


def forbid(*token_ids: int, until: int = 10**6) -> Edit:
    def edit(logits: np.ndarray, prompt: list[int], written: list[int]) -> None:
        if len(written) < until:
            logits[list(token_ids)] = -np.inf

    return edit


def add(biases: dict[str, float]) -> Edit:
    def edit(logits: np.ndarray, prompt: list[int], written: list[int]) -> None:
        for token_id, bias in biases.items():
            logits[int(token_id)] += bias

    return edit


LONG = {"max_tokens": 60}
EDITS: list[tuple[Body, Edit]] = [
    ({"presence_penalty": 1.5, **LONG}, penalise(1.5, 0, 1)),
    ({"presence_penalty": -1.5, **LONG}, penalise(-1.5, 0, 1)),
    ({"frequency_penalty": 0.4, **LONG}, penalise(0, 0.4, 1)),
    ({"repetition_penalty": 1.5, **LONG}, penalise(0, 0, 1.5)),
    ({"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1, **LONG}, penalise(0.5, 0.3, 1.1)),
    ({"logit_bias": {"113": 100}}, add({"113": 100})),
    ({"logit_bias": {"32": -100}}, add({"32": -100})),
    ({"logit_bias": {"113": 1.5, "111": -3}}, add({"113": 1.5, "111": -3})),
    ({"bad_words": ["n"]}, forbid(ord("n"))),
    ({"allowed_token_ids": [104, 105]}, forbid(*sorted({*range(258)} - {104, 105}))),
    ({"min_tokens": 55, **LONG}, forbid(EOS, until=55)),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "edit"), EDITS, ids=[next(iter(fields)) + f"-{i}" for i, (fields, _) in enumerate(EDITS)]
)
def test_what_changes_logits(client: httpx.Client, path: str, fields: Body, edit: Edit) -> None:
    body = {**prompt_of(path), **GREEDY, **fields}
    answer = ask_both(client, path, body).choices[0]
    plain = ask(client, path, {**prompt_of(path), **GREEDY, "max_tokens": body["max_tokens"]}).choices[0]
    assert answer.prompt_token_ids is not None
    assert answer.token_ids == recited(answer.prompt_token_ids, body["max_tokens"], edit)
    assert plain.token_ids == recited(answer.prompt_token_ids, body["max_tokens"], forbid())
    assert answer.token_ids != plain.token_ids


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fields", [{"top_k": 1}, {"min_p": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}], ids=str)
def test_what_makes_sampling_greedy(client: httpx.Client, path: str, fields: Body) -> None:
    body = {**prompt_of(path), "max_tokens": 24, "seed": 3, "temperature": 2}
    greedy = ask(client, path, {**body, "temperature": 0}).text
    assert ask_both(client, path, {**body, **fields}).text == greedy
    assert ask_both(client, path, body).text != greedy


@pytest.mark.parametrize("path", PATHS)
def test_seeds(client: httpx.Client, path: str) -> None:
    texts = [ask_both(client, path, {**prompt_of(path), "max_tokens": 24, "seed": seed}).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("path", PATHS)
def test_choices(client: httpx.Client, path: str) -> None:
    answer = ask_both(client, path, {**prompt_of(path), "max_tokens": 12, "seed": 1, "n": 3})
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.usage["completion_tokens"] == 36


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_included", [False, True])
def test_stops(client: httpx.Client, path: str, is_included: bool) -> None:
    body = {**prompt_of(path), **GREEDY, "include_stop_str_in_output": is_included}
    plain = ask(client, path, body).text
    stop = plain[5:8]
    by_text = ask_both(client, path, {**body, "stop": [stop, "§"]}).choices[0]
    assert by_text.text == plain[: plain.index(stop)] + stop * is_included
    assert (by_text.finish_reason, by_text.stop_reason) == ("stop", stop)
    by_id = ask_both(client, path, {**body, "stop_token_ids": [ord("n")]}).choices[0]
    assert by_id.text == plain[: plain.index("n") + is_included]
    assert (by_id.finish_reason, by_id.stop_reason) == ("stop", ord("n"))


@pytest.mark.parametrize("path", PATHS)
def test_the_end_of_the_text(client: httpx.Client, path: str) -> None:
    body = {**prompt_of(path), **GREEDY, "max_tokens": 80}
    ended = ask_both(client, path, body).choices[0]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)
    ignoring = ask_both(client, path, {**body, "ignore_eos": True})
    assert ignoring.choices[0].finish_reason == "length"
    assert ignoring.usage["completion_tokens"] == 80
    assert "<eos>" not in ignoring.text
    shown = ask_both(client, path, {**body, "ignore_eos": True, "skip_special_tokens": False}).text
    assert shown.startswith(ended.text + "<eos>")


def test_special_tokens_before_a_prompt(client: httpx.Client) -> None:
    def count(path: str, **fields: Any) -> int:
        return int(ask_both(client, path, {**prompt_of(path), **GREEDY, **fields}).usage["prompt_tokens"])

    assert count(COMPLETIONS) == count(COMPLETIONS, add_special_tokens=True) == 3
    assert count(COMPLETIONS, add_special_tokens=False) == 2
    assert count(CHATS) == count(CHATS, add_special_tokens=False) == count(CHATS, add_special_tokens=True) - 1


@pytest.mark.parametrize("path", PATHS)
def test_ids_beside_the_text(client: httpx.Client, path: str) -> None:
    choice = ask_both(client, path, {**prompt_of(path), **GREEDY}).choices[0]
    assert bytes(choice.token_ids).decode("utf-8", "replace") == choice.text
    prompt = [BOS, *b"Hi"] if path == COMPLETIONS else [*b"user: Hi\nassistant: "]
    assert choice.prompt_token_ids == prompt


@pytest.mark.parametrize("path", PATHS)
def test_salts_keep_caches_apart(client: httpx.Client, path: str) -> None:
    text = "All of this is more than one block of sixteen tokens."
    long: Body = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}

    def num_cached(salt: str) -> int:
        answer = ask(client, path, {**long, "max_tokens": 1, "cache_salt": salt + path})
        return int(answer.usage["prompt_tokens_details"]["cached_tokens"])

    assert [num_cached(salt) > 0 for salt in ("a", "a", "b", "b", "a")] == [False, True, False, True, True]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_echo(client: httpx.Client, is_streamed: bool) -> None:
    body = {"prompt": ["Hi", "Ho"], "max_tokens": 4, "temperature": 0, "echo": True, "n": 2}
    answer = (ask_streaming if is_streamed else ask)(client, COMPLETIONS, body)
    plain = ask(client, COMPLETIONS, {**body, "echo": False})
    texts = [before + choice.text for before, choice in zip(["Hi", "Hi", "Ho", "Ho"], plain.choices, strict=True)]
    assert [choice.text for choice in answer.choices] == texts


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"structured_outputs": {"regex": "qx{3}"}}, "qxxx"),
        ({"structured_outputs": {"choice": ["yes, sir"]}}, "yes, sir"),
        ({"structured_outputs": {"grammar": 'start: "q" "z"~2'}}, "qzz"),
        ({"structured_outputs": {"grammar": 'root ::= "q" "z"'}}, "qz"),
    ],
    ids=["regex", "choice", "lark", "gbnf"],
)
def test_the_form_of_the_answer(client: httpx.Client, path: str, wanted: Body, text: str) -> None:
    choice = ask_both(client, path, {**prompt_of(path), **GREEDY, **wanted}).choices[0]
    assert (choice.text, choice.finish_reason) == (text, "stop")


def test_what_chat_templates_are_told(client: httpx.Client) -> None:
    def prompt(**fields: Any) -> str:
        choice = ask_both(client, CHATS, {"messages": CHAT, **GREEDY, **fields}).choices[0]
        return bytes(choice.prompt_token_ids or []).decode()

    assert prompt() == "user: Hi\nassistant: "
    assert prompt(add_generation_prompt=False) == "user: Hi\n"
    assert prompt(chat_template_kwargs={"extra": "Well"}) == "user: Hi\nassistant: Well"
    begun = [*CHAT, {"role": "assistant", "content": "So"}]
    assert prompt(messages=begun, continue_final_message=True) == "user: Hi\nassistant: So"


@pytest.mark.parametrize("path", PATHS)
def test_unknown_fields_are_told(client: httpx.Client, path: str) -> None:
    answer = ask_both(client, path, {**prompt_of(path), **GREEDY, "tempratur": 1})
    assert answer.warnings == ["unknown field 'tempratur' was ignored"]
    assert ask_both(client, path, {**prompt_of(path), **GREEDY, "user": "me"}).warnings == []


def test_lower_priorities_are_served_first() -> None:
    program = RecitingProgram()
    program.step_seconds = 0.01
    order: list[int] = []
    with byte_engine(program, max_running=1) as engine, serve(engine) as url, httpx.Client(base_url=url) as client:

        def run(priority: int) -> None:
            client.post(COMPLETIONS, json={"prompt": "Hi", "max_tokens": 30, "priority": priority, "ignore_eos": True})
            order.append(priority)

        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(run, -9)
            while not engine.client.stats().num_running:
                pass
            others = [pool.submit(run, priority) for priority in (3, 1, 2)]
            for each in (first, *others):
                each.result()
    assert order == [-9, 1, 2, 3]


# -- all together ---------------------------------------------------------------------------------------------------

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0, 0.5, 1, 2]),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 30),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 3),
    "max_tokens": st.integers(0, 70),
    "stop": st.one_of(
        st.sampled_from(["n", "€", " z", "ü"]), st.lists(st.text("abnz €", min_size=1, max_size=2), max_size=4)
    ),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 3),
    "logit_bias": st.dictionaries(st.integers(0, 257).map(str), st.floats(-100, 100), max_size=4),
    "stop_token_ids": st.lists(st.integers(97, 122), max_size=3),
    "bad_words": st.lists(st.text("abnz €", min_size=1, max_size=3), max_size=3),
    "ignore_eos": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "add_special_tokens": st.booleans(),
    "return_token_ids": st.booleans(),
    "priority": st.integers(-3, 3),
}
ONE_ROUTE: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    COMPLETIONS: {
        "logprobs": st.integers(0, 20),
        "prompt": st.one_of(st.text(max_size=20), st.lists(st.integers(0, 255), min_size=1, max_size=20)),
        "echo": st.booleans(),
    },
    CHATS: {"logprobs": st.booleans(), "chat_template_kwargs": st.fixed_dictionaries({"extra": st.text(max_size=9)})},
}


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_of_them_together(client: httpx.Client, path: str, data: st.DataObject) -> None:
    """Alone, as a stream, and beside three others: the same answer."""
    body = prompt_of(path) | data.draw(st.fixed_dictionaries({}, optional={**FIELDS, **ONE_ROUTE[path]}))
    body = {"seed": data.draw(st.integers(0, 99)), "max_tokens": 20, **body}
    alone = ask_both(client, path, body)
    others = [{**body, "seed": body["seed"] + 1}, {"prompt": "Hi", "seed": 1}, {**body, "max_tokens": 5}]
    paths = [path, COMPLETIONS, path]
    with ThreadPoolExecutor(4) as pool:
        again = pool.submit(ask, client, path, body)
        for other, its_path in zip(others, paths, strict=True):
            pool.submit(ask, client, its_path, other)
    assert again.result().choices == alone.choices
