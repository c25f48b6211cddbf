"""`POST /generate`: what it answers, and every way in which a body can be wrong."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roseinfer.inference_engine import GenerateParams
from tests.fake_model import MAX_MODEL_LEN, recite
from tests.server.live import LiveServer, StartServer, assert_error

PROMPTS = ["Hello", "", "Ünï ", "a.b", "😀", "\x00", "x" * 100, "y" * 400]


def stream(server: LiveServer, **body: object) -> list[bytes]:
    with server.client.stream("POST", "/generate", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        return list(reply.iter_raw())


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("max_new_tokens", [0, 1, 7, 64])
def test_text_is_prompt_and_completion(server: LiveServer, prompt: str, max_new_tokens: int) -> None:
    reply = server.post(prompt=prompt, max_new_tokens=max_new_tokens)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {"text": prompt + recite(prompt, max_new_tokens)}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", [{}, {"stop_on_eos": False}, {"do_sample": True, "seed": 3}, {"max_new_tokens": 5}])
def test_streamed_is_what_is_not_streamed(server: LiveServer, prompt: str, options: dict[str, Any]) -> None:
    chunks = stream(server, prompt=prompt, **options)
    assert prompt + b"".join(chunks).decode() == server.post(prompt=prompt, **options).json()["text"]


def test_no_chunk_ends_inside_a_character(server: LiveServer) -> None:
    server.program.step_seconds = 0.002  # so that tokens come in chunks of their own
    try:
        chunks = stream(server, prompt="", max_new_tokens=48, stop_on_eos=False)
    finally:
        server.program.step_seconds = 0.0
    assert len(chunks) > 20
    assert all(chunk.decode() for chunk in chunks)


def test_defaults_of_the_table(server: LiveServer) -> None:
    prompt = "no full stop "
    expected = recite(prompt, 64)
    assert expected.endswith(".")  # stop_on_eos is true
    assert server.post(prompt=prompt).json()["text"] == prompt + expected
    assert server.post(prompt=prompt, stop_on_eos=False).json()["text"] == prompt + recite(
        prompt, 64, stop_on_eos=False
    )


def test_sampling_is_honoured_and_seeded(server: LiveServer) -> None:
    body = {"prompt": "Hi", "max_new_tokens": 16, "stop_on_eos": False}
    one = server.post(**body, do_sample=True, seed=1).json()["text"]
    assert one == server.post(**body, do_sample=True, seed=1).json()["text"]
    assert one != server.post(**body, do_sample=True, seed=2).json()["text"]
    assert server.post(**body, do_sample=False, seed=1).json()["text"] == "Hi" + recite("Hi", 16)
    assert server.post(**body, do_sample=True, temperature=0, seed=1).json()["text"] == "Hi" + recite("Hi", 16)


def test_the_server_may_have_other_defaults(start_server: StartServer) -> None:
    server = start_server(defaults=GenerateParams(do_sample=True, seed=5))
    sampled = server.post(prompt="Hi", max_new_tokens=16, do_sample=True, seed=5).json()["text"]
    assert server.post(prompt="Hi", max_new_tokens=16).json()["text"] == sampled
    assert server.post(prompt="Hi", max_new_tokens=16, do_sample=False).json()["text"] == "Hi" + recite("Hi", 16)


INT_FIELDS = {"max_new_tokens": 2**31 - 1, "top_k": 2**31 - 1, "seed": 2**63 - 1}
FLOAT_FIELDS = {"temperature": 2.0, "top_p": 1.0}
BOOL_FIELDS = ["stop_on_eos", "do_sample", "stream"]
NO_NUMBERS = ['"1"', '""', "[]", "[1]", "{}", "true", "false"]
WRONG_VALUES = [
    *[("prompt", raw) for raw in ["null", "1", "1.5", "true", "[]", '["a"]', "{}"]],
    *[(name, raw) for name in INT_FIELDS for raw in [*NO_NUMBERS, "1.5", "1.0", "1e2", "-1", "1e400", "9" * 4000]],
    *[(name, str(high + 1)) for name, high in INT_FIELDS.items()],
    *[(name, raw) for name in FLOAT_FIELDS for raw in [*NO_NUMBERS, "-0.1", "1e400", "-1e400", "9" * 4000]],
    *[(name, str(high + 0.01)) for name, high in FLOAT_FIELDS.items()],
    ("top_p", "0"),
    *[(name, "null") for name in ["max_new_tokens", "top_k", *FLOAT_FIELDS, *BOOL_FIELDS]],
    *[(name, raw) for name in BOOL_FIELDS for raw in ["0", "1", '"true"', "[]", "{}"]],
]


@pytest.mark.parametrize(("name", "raw"), WRONG_VALUES)
def test_a_wrong_value_names_its_field(server: LiveServer, name: str, raw: str) -> None:
    others = "" if name == "prompt" else '"prompt": "a", '
    reply = post_raw(server, f'{{{others}"{name}": {raw}}}'.encode())
    assert name in assert_error(reply, 400, param=name)


def test_every_wrong_field_is_told(server: LiveServer) -> None:
    message = assert_error(server.post(temperature="hot", top_k=True), 400, param="prompt")
    assert all(name in message for name in ["prompt", "temperature", "top_k"])


def post_raw(server: LiveServer, content: bytes, content_type: str = "application/json") -> httpx.Response:
    return server.client.post("/generate", content=content, headers={"Content-Type": content_type})


BAD_BODIES = {
    "empty": b"",
    "null": b"null",
    "text": b'"prompt"',
    "list": b"[]",
    "number": b"1",
    "cut off": b'{"prompt": "a"',
    "trailing": b'{"prompt": "a"} {}',
    "single quotes": b"{'prompt': 'a'}",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": Infinity}',
    "-Infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "huge int": b'{"prompt": "a", "top_k": ' + b"9" * 100_000 + b"}",
    "bad UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "control character": b'{"prompt": "\x01"}',
    "deep list": b'{"prompt": "a", "x": ' + b"[" * 64 + b"]" * 64 + b"}",
    "very deep": b"[" * 1_000_000,
    "deep object": b'{"prompt": "a", "x": ' + b'{"x":' * 64 + b"1" + b"}" * 64 + b"}",
    "large and bad": b'{"prompt": "' + b"a" * 200_000,
}


SOUND_JSON = ["null", "text", "list", "number"]  # but no object


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies(server: LiveServer, name: str) -> None:
    message = assert_error(post_raw(server, BAD_BODIES[name]), 400)
    if name in ("deep list", "deep object"):
        assert "nested more than 64 levels deep" in message
    elif name == "very deep":
        assert "more than 65536 objects and lists" in message
    else:
        assert ("not valid JSON: " in message) == (name not in SOUND_JSON)


def test_depth_below_the_limit(server: LiveServer) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 1, "x": ' + b"[" * 63 + b"]" * 63 + b"}"
    assert post_raw(server, body).status_code == 200


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_wrong_content_type(server: LiveServer, content_type: str) -> None:
    assert "application/json" in assert_error(post_raw(server, b'{"prompt": "a"}', content_type), 400)


def test_content_type_with_parameters(server: LiveServer) -> None:
    assert post_raw(server, b'{"prompt": "a"}', "Application/JSON; charset=utf-8").status_code == 200


def test_unknown_fields_are_named(server: LiveServer) -> None:
    reply = server.post(prompt="a", max_new_tokens=1, max_tokens=3, **{"x" * 1000: 1}).json()
    assert reply["text"] == "a" + recite("a", 1)
    assert reply["warnings"] == [
        "unknown field 'max_tokens' was ignored",
        f"unknown field '{'x' * 64}' was ignored",
    ]


def test_the_last_of_two_equal_keys_counts(server: LiveServer) -> None:
    reply = post_raw(server, b'{"prompt": "a", "max_new_tokens": 1, "prompt": "b"}')
    assert reply.json()["text"] == "b" + recite("b", 1)


@pytest.mark.parametrize("num_tokens", [MAX_MODEL_LEN, MAX_MODEL_LEN + 1, 100_000])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_prompt_that_does_not_fit(server: LiveServer, num_tokens: int, is_streamed: bool) -> None:
    reply = server.post(prompt="a" * num_tokens, stream=is_streamed)
    message = assert_error(reply, 400, param="prompt", code="context_length_exceeded")
    assert str(num_tokens) in message
    assert str(MAX_MODEL_LEN) in message


def test_an_answer_that_does_not_fit(server: LiveServer) -> None:
    reply = server.post(prompt="a" * 500, max_new_tokens=13)
    message = assert_error(reply, 400, param="max_new_tokens", code="context_length_exceeded")
    assert all(count in message for count in ["500", "13", "512"])


def test_without_max_new_tokens_the_answer_ends_with_the_context(server: LiveServer) -> None:
    prompt = "a" * 500
    assert server.post(prompt=prompt).json()["text"] == prompt + recite(prompt, 12)


def test_many_at_once_are_batched_and_exact(server: LiveServer) -> None:
    server.program.num_rows.clear()
    server.program.step_seconds = 0.002
    bodies = [{"prompt": f"{i} ", "max_new_tokens": 1 + i % 40, "stop_on_eos": bool(i % 2)} for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        replies = list(pool.map(lambda body: server.post(**body).json()["text"], bodies))
    server.program.step_seconds = 0.0
    for body, text in zip(bodies, replies, strict=True):
        prompt, count, stop = body["prompt"], body["max_new_tokens"], body["stop_on_eos"]
        assert text == prompt + recite(prompt, count, stop_on_eos=stop)  # type: ignore[arg-type]
    assert max(server.program.num_rows) > 8


@pytest.mark.parametrize("is_streamed", [False, True])
def test_hanging_up_ends_the_request(start_server: StartServer, is_streamed: bool) -> None:
    server = start_server()
    server.program.step_seconds = 0.02
    body = {"prompt": "a", "max_new_tokens": 500, "stop_on_eos": False, "stream": is_streamed}
    with pytest.raises(httpx.ReadTimeout):
        read_forever(server, body, timeout=0.3)
    assert wait_until(lambda: server.engine.client.stats().num_running == 0, seconds=3)
    stats = server.engine.client.stats()
    assert stats.num_free_blocks == stats.num_total_blocks
    assert stats.num_steps < 300  # it did not run to its end


def read_forever(server: LiveServer, body: dict[str, Any], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    limits = httpx.Timeout(timeout, connect=10)
    with httpx.Client(timeout=limits) as client, client.stream("POST", server.url + "/generate", json=body) as reply:
        for _ in reply.iter_raw():
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("long enough")


def wait_until(is_true: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(is_true())


def test_a_full_queue_refuses(start_server: StartServer) -> None:
    server = start_server(max_running=1, max_queue=1)
    server.program.step_seconds = 0.02
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: server.post(prompt="a", max_new_tokens=30), range(12)))
    refused = [reply for reply in replies if reply.status_code != 200]
    assert 10 >= len(refused) > 0
    for reply in refused:
        assert_error(reply, 503, code="server_is_overloaded")
        assert int(reply.headers["retry-after"]) >= 1
    assert {reply.json()["text"] for reply in replies if reply.status_code == 200} == {"a" + recite("a", 30)}


def test_a_fault_before_the_first_piece_is_a_500(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    server = start_server()
    server.program.failure = RuntimeError("out of ink")
    for is_streamed in (False, True):
        assert_error(server.post(prompt="a", stream=is_streamed), 500)
    server.program.failure = None
    assert server.post(prompt="a").status_code == 200


def test_a_fault_after_the_first_piece_cuts_the_stream(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server()
    server.program.step_seconds = 0.01
    body = {"prompt": "a", "max_new_tokens": 500, "stop_on_eos": False, "stream": True}
    with server.client.stream("POST", "/generate", json=body) as reply:
        pieces = reply.iter_raw()
        assert next(pieces)
        server.program.failure = RuntimeError("out of ink")
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    server.program.failure = None
    assert server.post(prompt="a").status_code == 200
    assert [record for record in caplog.records if "ASGI" in record.message] == []


def test_an_empty_stream(server: LiveServer) -> None:
    assert stream(server, prompt="a", max_new_tokens=0) == []
    assert stream(server, prompt=".", max_new_tokens=5) == []


def test_the_schema_names_fields_and_errors(server: LiveServer) -> None:
    schema = server.client.get("/openapi.json").json()
    assert schema["info"]["title"] == "roseinfer"
    responses = schema["paths"]["/generate"]["post"]["responses"]
    assert set(responses) == {"200", "4XX", "5XX"}
    assert set(responses["200"]["content"]) == {"application/json", "text/plain"}
    fields = schema["components"]["schemas"]["GenerateRequest"]["properties"]
    defaults = {name: field.get("default") for name, field in fields.items()}
    assert defaults == {
        "prompt": None,
        "max_new_tokens": 64,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "stop_on_eos": True,
        "do_sample": False,
        "stream": False,
        "seed": None,
    }
    assert json.dumps(schema)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
GOOD_VALUES = {
    "max_new_tokens": st.integers(0, 8),
    "temperature": st.floats(0, 2),
    "top_k": st.integers(0, 2**31 - 1),
    "top_p": st.floats(0, 1),
    "seed": st.none() | st.integers(0, 2**63 - 1),
    **{name: st.booleans() for name in BOOL_FIELDS},
}


@given(
    good=st.fixed_dictionaries({"prompt": st.text(max_size=50)}, optional=GOOD_VALUES),
    bad=st.dictionaries(st.sampled_from(["prompt", *GOOD_VALUES]) | st.text(max_size=10), JSON_VALUES, max_size=2),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_our_fault(server: LiveServer, good: dict[str, Any], bad: dict[str, Any]) -> None:
    content = json.dumps({**good, **bad}).encode()
    reply = post_raw(server, content)
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        assert_error(reply, 400, reply.json()["error"]["param"], reply.json()["error"]["code"])
