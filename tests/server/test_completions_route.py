"""`POST /v1/completions`: what it answers, whole and in streams, and how it refuses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from roseinfer.inference_engine import InferenceEngine
from roseinfer.server import worker
from tests.fake_model import EOS, MAX_MODEL_LEN, recite
from tests.server.live import LiveServer, StartServer, assert_error, serve

GREEDY: dict[str, Any] = {"temperature": 0}


def text_of(events: list[Any], index: int = 0) -> str:
    return "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index)


def test_the_shape_of_a_reply(server: LiveServer) -> None:
    reply = server.complete(prompt="Hello", max_tokens=5, **GREEDY)
    assert reply.status_code == 200
    body = reply.json()
    assert body["id"] == "cmpl-" + reply.headers["x-request-id"]
    assert body["object"] == "text_completion"
    assert abs(body["created"] - time.time()) < 60
    assert body["model"] == "fake"
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {"index": 0, "text": recite("Hello", 5), "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert sorted(body["timings"]) == ["decode_ms", "prefill_ms", "queue_ms", "tokens_per_second", "ttft_ms"]
    assert "warnings" not in body


def test_sixteen_tokens_unless_told(server: LiveServer) -> None:
    assert server.complete(prompt="no ", **GREEDY).json()["usage"]["completion_tokens"] == 16


def test_without_max_tokens_the_answer_ends_with_the_context(server: LiveServer) -> None:
    body = server.complete(prompt="a" * (MAX_MODEL_LEN - 3), **GREEDY).json()
    assert body["usage"]["completion_tokens"] == 3
    assert body["choices"][0]["finish_reason"] == "length"


def test_null_means_not_given(server: LiveServer) -> None:
    schema = server.client.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"]
    nulls = dict.fromkeys(name for name in schema if name not in ("prompt", "temperature", "max_tokens"))
    reply = server.complete(prompt="Hello", max_tokens=5, **GREEDY, **nulls)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["text"] == recite("Hello", 5)


@pytest.mark.parametrize(
    "prompt", ["ab", ["ab", "c"], [97, 98], [[97, 98], [99]], ""], ids=["text", "texts", "ids", "id lists", "empty"]
)
def test_the_forms_of_a_prompt(server: LiveServer, prompt: Any) -> None:
    choices = server.complete(prompt=prompt, max_tokens=4, **GREEDY).json()["choices"]
    texts = ["ab", "c"] if isinstance(prompt, list) and not isinstance(prompt[0], int) else ["ab" if prompt else ""]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (index, recite(text, 4)) for index, text in enumerate(texts)
    ]


def test_choices_are_numbered_prompt_by_prompt(server: LiveServer) -> None:
    body = server.complete(prompt=["a", "bb"], n=3, seed=4, max_tokens=6, return_token_ids=True).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert [len(choice["prompt_token_ids"]) for choice in body["choices"]] == [1, 1, 1, 2, 2, 2]
    assert len({tuple(choice["token_ids"]) for choice in body["choices"][:3]}) == 3
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in body["choices"])
    assert (
        body["choices"]
        == server.complete(prompt=["a", "bb"], n=3, best_of=3, seed=4, max_tokens=6, return_token_ids=True).json()[
            "choices"
        ]
    )


def test_a_negative_seed_is_a_seed(server: LiveServer) -> None:
    bodies = [server.complete(prompt="a", seed=seed).json()["choices"] for seed in (-5, -5, 2**63 - 5)]
    assert bodies[0] == bodies[1] == bodies[2]


@pytest.mark.parametrize("is_included", [False, True])
def test_stop_strings(server: LiveServer, is_included: bool) -> None:
    expected = recite("x", 60)
    stop = expected[10:14]
    end = expected.index(stop) + (len(stop) if is_included else 0)
    options = {"max_tokens": 60, "stop": [stop, "never"], "include_stop_str_in_output": is_included, **GREEDY}
    choice = server.complete(prompt="x", **options).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (expected[:end], "stop", stop)
    events = server.events("/v1/completions", prompt="x", **options)
    assert text_of(events) == expected[:end]
    assert events[-1]["choices"][0]["stop_reason"] == stop


def test_the_end_of_text_has_no_stop_reason(server: LiveServer) -> None:
    body = server.complete(prompt="x", max_tokens=100, **GREEDY).json()
    assert (body["choices"][0]["finish_reason"], body["choices"][0]["stop_reason"]) == ("stop", None)
    assert body["choices"][0]["text"].endswith(".")


def test_a_stop_token_is_told(server: LiveServer) -> None:
    choice = server.complete(prompt="x", max_tokens=100, stop_token_ids=[ord("f")], **GREEDY).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ord("f"))


# -- streams ------------------------------------------------------------------------------------------------


def test_the_chunks_of_a_stream(server: LiveServer) -> None:
    events = server.events("/v1/completions", prompt="Hello", max_tokens=20, foo=1, **GREEDY)
    assert text_of(events) == recite("Hello", 20)
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1
    assert events[0]["warnings"] == ["unknown field 'foo' was ignored"]
    assert not any("warnings" in event for event in events[1:])
    assert [event["choices"][0]["finish_reason"] for event in events][-1] == "length"
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert all("usage" not in event for event in events)
    assert events[-1]["timings"]["tokens_per_second"] != 0


def test_usage_comes_last_if_asked_for(server: LiveServer) -> None:
    events = server.events(
        "/v1/completions", prompt=["ab", "c"], n=2, max_tokens=5, stream_options={"include_usage": True}, **GREEDY
    )
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["prompt_tokens"] == 3
    assert events[-1]["usage"]["completion_tokens"] == 20


def test_usage_in_every_chunk(server: LiveServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events("/v1/completions", prompt="ab", max_tokens=5, stream_options=options, **GREEDY)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 5


@pytest.mark.parametrize(
    "options", [{}, {"n": 3, "temperature": 1}, {"logprobs": 2, "echo": True}, {"return_token_ids": True}]
)
def test_a_stream_adds_up_to_the_reply(server: LiveServer, options: dict[str, Any]) -> None:
    body = {"prompt": "Hello", "seed": 1, "max_tokens": 30, "temperature": 0, **options}
    whole = server.complete(**body).json()["choices"]
    events = server.events("/v1/completions", **body)
    for choice in whole:
        parts = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            for name, values in choice["logprobs"].items():
                assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values
        if "token_ids" in choice:
            assert [token_id for part in parts for token_id in part["token_ids"]] == choice["token_ids"]


def test_a_stream_that_cannot_begin_has_a_status(server: LiveServer) -> None:
    assert_error(server.complete(prompt=[97, 9999], stream=True), 400, param="prompt")


def test_a_fault_within_a_stream_is_an_event(start_server: StartServer) -> None:
    server = start_server()
    server.program.step_seconds = 0.01
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: {")
        server.program.failure = RuntimeError("out of ink")
        rest = [line for line in lines if line]
    assert rest[-1].startswith('data: {"error":{"message":')
    assert "[DONE]" not in "".join(rest)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_hanging_up_ends_all_choices(start_server: StartServer, is_streamed: bool) -> None:
    server = start_server()
    server.program.step_seconds = 0.02
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 400, "ignore_eos": True, "stream": is_streamed}
    with pytest.raises(httpx.ReadTimeout):
        read_for(server, body, 0.3)
    deadline = time.monotonic() + 3
    while (stats := server.engine.client.stats()).num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stats.num_running == 0
    assert stats.num_steps < 200


def read_for(server: LiveServer, body: dict[str, Any], seconds: float) -> None:
    """Hangs up then."""
    deadline = time.monotonic() + seconds
    url = server.url + "/v1/completions"
    with httpx.Client(timeout=seconds) as client, client.stream("POST", url, json=body) as reply:
        for _ in reply.iter_raw():
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("long enough")


# -- logprobs -----------------------------------------------------------------------------------------------


def test_logprobs(server: LiveServer) -> None:
    choice = server.complete(prompt="Hello", max_tokens=8, logprobs=3, **GREEDY).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 8
    assert all(logprob < 0 for logprob in logprobs["token_logprobs"])
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert 1 <= len(top) <= 4
        assert max(top.values()) == top[token] == logprob
    assert logprobs["text_offset"][0] == 0
    assert server.complete(prompt="Hello", logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] is None


def test_an_echo_has_the_prompts_logprobs(server: LiveServer) -> None:
    options = {"max_tokens": 4, "logprobs": 2, "echo": True, **GREEDY}
    choice = server.complete(prompt="Hello", **options).json()["choices"][0]
    assert choice["text"] == "Hello" + recite("Hello", 4)
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:5] == list("Hello")
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"][:6] == [0, 1, 2, 3, 4, 5]
    assert all(isinstance(logprob, float) for logprob in logprobs["token_logprobs"][1:])


@pytest.mark.parametrize("is_streamed", [False, True])
def test_max_tokens_0_scores_the_prompt(server: LiveServer, is_streamed: bool) -> None:
    body = {"prompt": ["Hello", "you"], "max_tokens": 0, "logprobs": 1, "echo": True}
    if is_streamed:
        choices = [choice for event in server.events("/v1/completions", **body) for choice in event["choices"]]
    else:
        reply = server.complete(**body).json()
        choices = reply["choices"]
        assert reply["usage"]["completion_tokens"] == 0
    assert sorted(choice["text"] for choice in choices) == ["Hello", "you"]
    for choice in choices:
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        assert choice["finish_reason"] == "length"


def test_max_tokens_0_without_anything_to_score(server: LiveServer) -> None:
    reply = server.complete(prompt="Hello", max_tokens=0, echo=True).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == ("Hello", "length")
    assert len(server.events("/v1/completions", prompt="Hello", max_tokens=0)) == 1


def test_prompt_logprobs(server: LiveServer) -> None:
    choice = server.complete(prompt="abc", max_tokens=1, prompt_logprobs=2).json()["choices"][0]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for char, place in zip("bc", rest, strict=True):
        own = place[str(ord(char))]
        assert own["decoded_token"] == char
        assert own["logprob"] < 0
        assert {entry["rank"] for entry in place.values()} >= {1, 2}


def test_many_logprobs_are_told_as_few_are(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    body: dict[str, Any] = {
        "prompt": "abc" * 60,
        "max_tokens": 30,
        "n": 2,
        "temperature": 0,
        "echo": True,
        "logprobs": 20,
        "prompt_logprobs": 20,
    }
    many = server.complete(**body).json()
    monkeypatch.setattr(worker, "MAX_INLINE_CHARS", 10**9)
    few = server.complete(**body).json()
    assert many["choices"] == few["choices"]
    assert len(many["choices"][1]["prompt_logprobs"]) == 180
    assert list(many) == list(few)


def test_an_echo_of_ids(server: LiveServer) -> None:
    choice = server.complete(prompt=list("Ü!".encode()), max_tokens=0, echo=True, logprobs=0).json()["choices"][0]
    assert choice["text"] == "Ü!"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]


# -- what reaches the sampler -------------------------------------------------------------------------------


def test_logit_bias_and_allowed_tokens(server: LiveServer) -> None:
    biased = server.complete(prompt="a", max_tokens=5, logit_bias={str(ord("q")): 100}, **GREEDY).json()
    assert biased["choices"][0]["text"] == "qqqqq"
    allowed = server.complete(prompt="a", max_tokens=5, allowed_token_ids=[ord("v")], **GREEDY).json()
    assert allowed["choices"][0]["text"] == "vvvvv"


def test_bad_words(server: LiveServer) -> None:
    expected = recite("a", 12)
    text = server.complete(prompt="a", max_tokens=12, bad_words=[expected[4]], **GREEDY).json()["choices"][0]["text"]
    assert expected[4] not in text
    assert text[:4] == expected[:4]


def test_min_tokens_and_ignore_eos(server: LiveServer) -> None:
    end = server.complete(prompt="x", max_tokens=100, **GREEDY).json()["usage"]["completion_tokens"]
    longer = server.complete(prompt="x", max_tokens=100, min_tokens=end + 3, **GREEDY).json()
    assert longer["usage"]["completion_tokens"] > end
    ignoring = server.complete(prompt="x", max_tokens=100, ignore_eos=True, return_token_ids=True, **GREEDY).json()
    assert EOS in ignoring["choices"][0]["token_ids"]
    assert ignoring["usage"]["completion_tokens"] == 100


# -- refusals -----------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": 1}, "prompt"),
    ({"prompt": [[]]}, "prompt.0"),
    ({"prompt": ["a", 1]}, "prompt.1"),
    ({"prompt": [1, "a"]}, "prompt.1"),
    ({"prompt": [-1]}, "prompt.0"),
    ({"prompt": ["a"] * 257}, "prompt"),
    ({"prompt": ["a"] * 200, "n": 2}, "n"),
    ({"prompt": [300]}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "1"}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "a" * 257}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": 1}, "stop"),
    ({"stop": ["a", 1]}, "stop.1"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"999": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"stop_token_ids": [0] * 65}, "stop_token_ids"),
    ({"stop_token_ids": [300]}, "stop_token_ids"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [300]}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words.0"),
    ({"bad_words": ["a"] * 65}, "bad_words"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"cache_salt": "a" * 257}, "cache_salt"),
    ({"priority": 2**31}, "priority"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"suffix": "a"}, "suffix"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ({"guided_json": {}}, "guided_json"),
    ({"prompt_embeds": "a"}, "prompt_embeds"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[param + str(i) for i, (_, param) in enumerate(REFUSED)])
def test_refusals_name_the_field(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    message = assert_error(server.complete(**{"prompt": "a", **fields}), 400, param=param)
    assert param.split(".")[0] in message or param == "n"


def test_a_prompt_that_does_not_fit(server: LiveServer) -> None:
    message = assert_error(
        server.complete(prompt="a" * 500, max_tokens=13), 400, param="max_tokens", code="context_length_exceeded"
    )
    assert all(count in message for count in ["500", "13", "512"])
    assert_error(server.complete(prompt="a" * 512), 400, param="prompt", code="context_length_exceeded")
    assert_error(server.complete(prompt=["a", [97] * 3]), 400, param="prompt.1")


def test_another_model_is_not_found(server: LiveServer) -> None:
    message = assert_error(server.complete(prompt="a", model="gpt-4"), 404, param="model", code="model_not_found")
    assert "'gpt-4'" in message
    assert server.complete(prompt="a", model="fake").status_code == 200


def test_unknown_fields_are_named_and_counted(server: LiveServer) -> None:
    reply = server.complete(prompt="a", frobnicate=1, stream=False, user="me").json()
    assert reply["warnings"] == ["unknown field 'frobnicate' was ignored"]


def test_a_full_queue_refuses_as_a_whole(start_server: StartServer) -> None:
    server = start_server(max_running=2, max_queue=2)
    server.program.step_seconds = 0.02
    body = {"prompt": ["a", "b", "c"], "max_tokens": 50, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_raw())
        refused = server.complete(prompt=["a", "b"])
        assert_error(refused, 503, code="server_is_overloaded")
        assert int(refused.headers["retry-after"]) >= 1


def test_offsets_behind_a_broken_character(server: LiveServer) -> None:
    body = {"prompt": [0xE2, 0x44, 0xC3, 0xBC, 0x61], "echo": True, "logprobs": 0, "max_tokens": 0}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "\ufffdDüa"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [97], "bad_words": ["a"]}, "allowed_token_ids"),
        ({"allowed_token_ids": [256], "min_tokens": 2}, "allowed_token_ids"),
    ],
)
def test_what_forbids_everything_is_the_callers_fault(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    assert_error(server.complete(prompt="a", **fields), 400, param)


def test_large_and_wrong_bodies_hold_nobody_up(server: LiveServer) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": [1, "x"] + [1, "x"] * 200_000},
        {"prompt": "x", "allowed_token_ids": [-1] * 400_000},
        {"prompt": "x", "logit_bias": {f"a{i}": "x" for i in range(100_000)}},
        {"prompt": "x", **{f"k{i}": 1 for i in range(100_000)}},
        {"prompt": [["x"] * 1000] * 255},
    ]
    for body in bodies:
        before = time.perf_counter()
        assert server.complete(**body).status_code == 400
        assert time.perf_counter() - before < 2.0


def test_offsets_of_an_echo_with_special_names(smollm2_path: Path) -> None:
    with InferenceEngine(str(smollm2_path)) as engine, serve(engine) as url:
        text = "<|im_start|>user\nhi<|im_end|>"
        body = {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0}
        choice = httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]
    assert choice["logprobs"]["text_offset"] == [0, 12, 16, 17, 19]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == text
