from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.constraints import (
    CompiledGrammar,
    Constraint,
    GrammarCompiler,
    TokenTable,
    grammar_of_choices,
    grammar_of_json_object,
)
from roseinfer.core.errors import EngineError, InvalidRequestError
from roseinfer.core.messages import Grammar
from tests.constraints.walker import Walker, allowed_ids, byte_table, feed, mask_of

HELLO, OPEN, SPACES, EOS, TOOL_CALL, EOS_OF_TURN = range(256, 262)
ENDS = {EOS, EOS_OF_TURN}


def lark(text: str) -> Grammar:
    return Grammar(kind="lark", text=text)


def regex(text: str) -> Grammar:
    return Grammar(kind="regex", text=text)


def schema(text: str) -> Grammar:
    return Grammar(kind="json_schema", text=text)


def test_a_mask_holds_every_spelling_of_what_may_follow(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    constraint = compiler.compile(regex("hello|help")).start()
    assert allowed_ids(constraint, bytes_table) == [ord("h"), HELLO]
    feed(constraint, "hel")
    assert allowed_ids(constraint, bytes_table) == [ord("l"), ord("p")]


def test_ends_are_allowed_where_the_grammar_is_complete(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    constraint = compiler.compile(regex("ab?")).start()
    assert not ENDS & set(allowed_ids(constraint, bytes_table))
    feed(constraint, "a")
    assert set(allowed_ids(constraint, bytes_table)) == {ord("b"), *ENDS}
    assert not constraint.is_finished  # a b may still come
    feed(constraint, "b")
    assert constraint.is_finished
    assert set(allowed_ids(constraint, bytes_table)) == ENDS


@pytest.mark.parametrize("end", sorted(ENDS))
def test_accepting_an_end_finishes(compiler: GrammarCompiler, end: int) -> None:
    constraint = feed(compiler.compile(regex("a+")).start(), "aa")
    constraint.accept(end)
    assert constraint.is_finished


def test_special_tokens_are_not_text(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    anything = compiler.compile(regex("(?s:.*)")).start()
    assert set(allowed_ids(anything, bytes_table)) & {EOS, TOOL_CALL, EOS_OF_TURN} == ENDS
    spelled = compiler.compile(regex("<tool_call>")).start()
    assert allowed_ids(spelled, bytes_table) == [ord("<")]


def test_a_grammar_may_name_special_tokens(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    constraint = compiler.compile(lark('start: <tool_call> "x" <[261]> "y"')).start()
    assert allowed_ids(constraint, bytes_table) == [TOOL_CALL]
    constraint.accept(TOOL_CALL)
    feed(constraint, "x")
    assert allowed_ids(constraint, bytes_table) == [EOS_OF_TURN]


def test_a_grammar_may_not_name_unknown_tokens(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError, match="lark grammar cannot be used") as caught:
        compiler.compile(lark("start: <|no_such_token|>"))
    assert caught.value.param == "grammar"


def test_logits_may_be_wider_and_a_row_is_written_whole(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    constraint = compiler.compile(lark("start: <[*]>")).start()
    row = np.full(20, 0xFFFFFFFF, np.uint32)
    constraint.fill_mask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    assert bits[: len(bytes_table.tokens)].all()
    assert not bits[len(bytes_table.tokens) :].any()


@pytest.mark.parametrize("num_words", [0, 31, 32, 33])
def test_a_vocabulary_without_an_end_gets_none(num_words: int) -> None:
    table = byte_table(*(b"w%d" % i for i in range(num_words)), specials=())
    compiler = GrammarCompiler(lambda: table)
    constraint = compiler.compile(regex("a+")).start()
    assert allowed_ids(feed(constraint, "aa"), table) == [ord("a")]
    assert not constraint.is_finished
    once = feed(compiler.compile(regex("a")).start(), "a")
    assert once.is_finished
    assert allowed_ids(once, table) == []
    compiler.close()


def test_tokens_without_bytes_are_never_allowed() -> None:
    table = byte_table(b"", b"x")
    compiler = GrammarCompiler(lambda: table)
    assert 256 not in allowed_ids(compiler.compile(regex("(?s:.*)")).start(), table)
    compiler.close()


@pytest.mark.parametrize("token_id", [ord("x"), TOOL_CALL, EOS, 262, 10**9, -1])
def test_a_forbidden_token_is_an_engine_error(compiler: GrammarCompiler, token_id: int) -> None:
    constraint = compiler.compile(regex("abc")).start()
    with pytest.raises(EngineError):
        constraint.accept(token_id)


def test_nothing_follows_a_finished_answer(compiler: GrammarCompiler) -> None:
    for text in ("x", " ", "\n"):
        constraint = feed(compiler.compile(schema('{"const": {"a": 1}}')).start(), '{"a":1}')
        assert constraint.is_finished
        with pytest.raises(EngineError):
            feed(constraint, text)


def test_requests_of_one_grammar_do_not_touch_each_other(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    grammar = compiler.compile(regex("abc|axy"))
    one, other = grammar.start(), grammar.start()
    feed(one, "ab")
    feed(other, "ax")
    with pytest.raises(EngineError):
        feed(other, "c")
    assert allowed_ids(one, bytes_table) == [ord("c")]
    assert allowed_ids(grammar.start(), bytes_table) == [ord("a")]


def test_an_answer_in_the_middle_of_a_character(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    constraint = feed(compiler.compile(regex("aé|aè")).start(), b"a\xc3")
    assert allowed_ids(constraint, bytes_table) == sorted(("é".encode()[1], "è".encode()[1]))


def test_white_space_is_bounded(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(
        schema('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    )
    for text in ('{"a":1}', '{"a": 1}', '{\n    "a": 1\n}', '{\n\t"a"  :  1\n}'):
        assert feed(grammar.start(), text).is_finished
    for text in (" ", "\n", '{"a":   ', "{\n\n", "{\t", "{\n" + 65 * " ", '{"a": 1\r'):
        with pytest.raises(EngineError):
            feed(grammar.start(), text)


def step(constraint: Constraint, table: TokenTable, text: str, times: int) -> None:
    for _ in range(times):
        mask_of(constraint, table)
        feed(constraint, text)


def test_worn_out_states_end_one_request_and_no_other(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    """The library's copies share their lexer, and its failure: the good request starts before and ends after it."""
    grammar = compiler.compile(regex("ok{1,40}|x((a{1,100}){1,100}){1,100}"))
    good, bad = grammar.start(), grammar.start()
    feed(good, "ok")
    feed(bad, "x")
    with pytest.raises(InvalidRequestError, match="lexer error"):
        step(bad, bytes_table, "a", 5000)
    for _ in range(20):
        assert set(allowed_ids(good, bytes_table)) == {ord("k"), *ENDS}
        feed(good, "k")
    assert allowed_ids(grammar.start(), bytes_table) == [ord("o"), ord("x")]


def test_a_step_that_takes_too_long_ends_the_request(
    compiler: GrammarCompiler, bytes_table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roseinfer.constraints.constraint.MAX_STEP_SECONDS", 0.002)
    constraint = compiler.compile(lark('start: s\ns: s s | s s s | "a" | ""')).start()
    with pytest.raises(InvalidRequestError, match="takes too long") as caught:
        step(constraint, bytes_table, "a", 200)
    assert caught.value.param == "grammar"


CHOICES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    choices=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=8
    ),
    seed=st.integers(0, 2**32),
)
def test_choices_are_exact(compiler: GrammarCompiler, bytes_table: TokenTable, choices: list[str], seed: int) -> None:
    grammar = compiler.compile(grammar_of_choices(choices))
    for choice in choices:
        constraint = feed(grammar.start(), choice)
        assert set(allowed_ids(constraint, bytes_table)) >= ENDS
        is_prefix = any(other != choice and other.startswith(choice) for other in choices)
        assert constraint.is_finished == (not is_prefix)
    walk = Walker(bytes_table).walk(grammar, seed)
    assert walk.text.decode() in choices


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 200))
def test_a_replay_arrives_at_the_same_masks(
    compiler: GrammarCompiler, bytes_table: TokenTable, seed: int, cut: int
) -> None:
    grammar = compiler.compile(grammar_of_json_object())
    ids = Walker(bytes_table).walk(grammar, seed).token_ids
    cut = min(cut, len(ids))
    whole, resumed = grammar.start(), replayed(grammar, ids[:cut])
    for token_id in ids[:cut]:
        mask_of(whole, bytes_table)  # asked for at every step, or only later: no difference
        whole.accept(token_id)
    for token_id in ids[cut:]:
        assert mask_of(whole, bytes_table).tolist() == mask_of(resumed, bytes_table).tolist()
        whole.accept(token_id)
        resumed.accept(token_id)
    assert whole.is_finished == resumed.is_finished


def replayed(grammar: CompiledGrammar, ids: list[int]) -> Constraint:
    constraint = grammar.start()
    for token_id in ids:
        constraint.accept(token_id)
    return constraint
