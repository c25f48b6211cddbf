"""Requests made by hand, whose fields hold anything: each ends alone, and never the engine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import AddRequest, Grammar
from roseinfer.engine.checks import check_prompt_logprobs, check_request
from tests.fake_engine import make_engine, make_request, run_alone, run_to_end
from tests.fake_program import FakeProgram

VOCAB_SIZE = 50
GOOD = [
    make_request("a", [1, 2, 3], temperature=0.8, seed=3),
    make_request("b", [4, 5], num_logprobs=2, presence_penalty=0.5),
    make_request("c", [1, 2, 3, 4, 5, 6], logit_bias={7: 3.0}),
]
ALONE = {request.request_id: run_alone(request) for request in GOOD}

NUMBERS: list[Any] = [
    *(
        0,
        -1,
        1,
        2,
        VOCAB_SIZE - 1,
        VOCAB_SIZE,
        2**31 - 1,
        2**31,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63) - 1,
        10**400,
        -(10**400),
    ),
    *(0.0, -0.0, 0.5, 1e-46, 5e-324, 1.0, 2.0, 2.5, 1e38, 3.5e38, 1e308, float("inf"), float("-inf"), float("nan")),
]
TEXTS = ["", "a", "\0", "\ud800", "\U0010ffff", "a" * 300, "regex"]
SCALARS = [None, True, False, b"a", object(), *NUMBERS, *TEXTS]
anything = st.recursive(
    st.sampled_from(SCALARS),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.tuples(children, children),
        st.dictionaries(st.sampled_from([0, 1, -1, VOCAB_SIZE, "a", None, 2**70, 0.5]), children, max_size=3),
        st.builds(Grammar, st.sampled_from(["regex", "lark", "json_schema", "king", None, 1]), children),
    ),
    max_leaves=6,
)
FIELDS = [field for field in AddRequest.__struct_fields__ if field != "request_id"]
# What an error calls a field, where it is not the struct's own word for it.
NAMES = {
    "prompt_ids": {"prompt", "prompt_logprobs"},
    "num_logprobs": {"num_logprobs", "logprobs"},
    "num_prompt_logprobs": {"num_prompt_logprobs", "prompt_logprobs"},
    "bad_words_ids": {"bad_words"},
}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), anything, min_size=1, max_size=3), st.integers(0, 3))
def test_whatever_a_request_holds_it_ends_alone(fields: dict[str, Any], place: int) -> None:
    engine = make_engine()
    bad = msgspec.structs.replace(make_request("bad", [1, 2], max_tokens=4), **fields)
    for request in [*GOOD[:place], bad, *GOOD[place:]]:
        engine.add(request)
    transcript = run_to_end(engine)
    end = transcript.ends["bad"]
    assert (end.finish_reason == "error") == (end.error is not None)
    for request_id, result in ALONE.items():
        assert transcript.result(request_id) == result
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks


def refusal_of(request: AddRequest) -> InvalidRequestError | None:
    try:
        check_request(request, VOCAB_SIZE, 128)
    except InvalidRequestError as error:
        return error
    return None


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(FIELDS), anything)
def test_the_door_names_the_field(field: str, value: Any) -> None:
    request = msgspec.structs.replace(make_request("bad", [1, 2]), **{field: value})
    error = refusal_of(request)
    if error is None:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=AddRequest)
    else:
        assert error.param in NAMES.get(field, {field})
        assert len(str(error)) < 300


@pytest.mark.parametrize("request_id", [None, 5, "a" * 257, "\ud800", 1.5, ("a",)])
def test_an_id_that_is_none(request_id: Any) -> None:
    engine = make_engine()
    engine.add(GOOD[0])
    engine.add(msgspec.structs.replace(make_request("bad", [1]), request_id=request_id))
    transcript = run_to_end(engine)
    assert (transcript.ends[request_id].finish_reason, transcript.ends[request_id].error_param) == (
        "error",
        "request_id",
    )
    assert transcript.result("a") == ALONE["a"]


@pytest.mark.parametrize("salt", ["", "a" * limits.CACHE_SALT_CHARS.most])
@pytest.mark.parametrize("tenant", ["", "0123456789abcdef"])
def test_the_longest_salt_of_any_tenant(tenant: str, salt: str) -> None:
    salted = f"{tenant}/{salt}" if tenant else salt
    request = make_request("a", [1, 2], cache_salt=salted, tenant=tenant)
    check_request(request, VOCAB_SIZE, 128)
    if salt:
        with pytest.raises(InvalidRequestError, match="cache_salt takes at most 256 characters, got 257"):
            check_request(msgspec.structs.replace(request, cache_salt=salted + "a"), VOCAB_SIZE, 128)


def test_prompt_logprobs_in_all() -> None:
    request = make_request("a", [1] * 200_000, num_prompt_logprobs=19)
    check_request(request, VOCAB_SIZE, 2**20)
    with pytest.raises(
        InvalidRequestError, match="prompt_logprobs takes at most 4000000 logprobs, got 4200000"
    ) as caught:
        check_request(msgspec.structs.replace(request, num_prompt_logprobs=20), VOCAB_SIZE, 2**20)
    assert caught.value.param == "prompt_logprobs"
    check_prompt_logprobs(None, 2**40)
    check_prompt_logprobs(-1, 2**40)


def test_the_fields_are_those_of_the_fake_program() -> None:
    """The numbers above stand around its vocabulary."""
    assert make_engine().vocab_size == VOCAB_SIZE
    assert FakeProgram(num_blocks=1, max_batch_tokens=1, max_logit_rows=1).vocab_size == VOCAB_SIZE
