"""Grammars: any answer that one lets through is calls of the right tools with arguments that satisfy their schemas."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from roseinfer.core.errors import InvalidRequestError
from roseinfer.text import Tokenizer, load_tokenizer
from roseinfer.text.reasoning import ReasoningTags
from roseinfer.text.tool_dialects import Tool, dialect_names, load_dialect
from tests.text.tool_dialects.answers import TOOLS, TWO_CALLS, parse

MARKED = [name for name in dialect_names() if load_dialect(name).opening]
BARE = [name for name in dialect_names() if not load_dialect(name).opening]
THINK = ReasoningTags("<think>", "</think>")
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}

# What ends open strings and text soon, so that a random walk comes to an end.
CLOSERS = ['"', "}", "]", '"}', "\n</parameter>\n", "</think>\n\n"]


class Vocabulary:
    """A token for each byte, an end token, and special tokens."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        names = [b"<eos>", *(name.encode() for name in special_tokens)]
        self.tokens = [bytes([byte]) for byte in range(256)] + names
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.special_tokens = {name: 257 + i for i, name in enumerate(special_tokens)}
        self.eos_token_id = 256
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


class Walker:
    """Random answers under a grammar."""

    def __init__(self, vocabulary: Vocabulary | RealVocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=len(vocabulary.tokens))

    def matcher(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self.tokenizer, grammar)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def walk(self, grammar: str, seed: int) -> str:
        generator = random.Random(seed)
        matcher = self.matcher(grammar)
        ids: list[int] = []
        while not (matcher.is_stopped() or (matcher.is_accepting() and generator.random() < 0.3)):
            ids += self._step(matcher, generator)
            assert len(ids) < 5_000
        return b"".join(self.vocabulary.tokens[token_id] for token_id in ids).decode()

    def _step(self, matcher: LLMatcher, generator: random.Random) -> list[int]:
        for closer in generator.sample(CLOSERS, 2) if generator.random() < 0.5 else ():
            ids = self.vocabulary(closer.encode())
            if matcher.validate_tokens(ids) == len(ids):
                assert matcher.consume_tokens(ids)
                return ids
        allowed = [token_id for token_id, bias in enumerate(matcher.compute_logit_bias()) if bias]
        token_id = generator.choice([i for i in allowed if i != self.vocabulary.eos_token_id])
        assert matcher.consume_token(token_id), matcher.get_error()
        return [token_id]

    def accepts(self, grammar: str, ids: Sequence[int]) -> bool:
        """Whether the ids are a whole answer."""
        matcher = self.matcher(grammar)
        return matcher.try_consume_tokens(list(ids)) == len(ids) and matcher.is_accepting()

    def ids(self, text: str) -> list[int]:
        """Special tokens where the text has their names."""
        for name, token_id in self.vocabulary.special_tokens.items():
            if name in text:
                before, _, behind = text.partition(name)
                return [*self.ids(before), token_id, *self.ids(behind)]
        return list(text.encode())


class RealVocabulary:
    """That of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)]
        self.special_tokens: dict[str, int] = {}
        self.eos_token_id = tokenizer.eos_ids[0]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_bos=False, parse_special=False)


@cache
def walker_of(special_tokens: tuple[str, ...]) -> Walker:
    return Walker(Vocabulary(special_tokens))


def check_calls(name: str, text: str, tools: Sequence[str]) -> int:
    """How many calls the answer has; all text of it belongs to them."""
    answer = parse(load_dialect(name).parser(TOOLS), [text])
    assert answer.content == ""
    for called, arguments in answer.calls:
        assert called in tools
        jsonschema.validate(json.loads(arguments), SCHEMAS[called])
    return len(answer.calls)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", dialect_names())
def test_answers_under_a_grammar_are_calls(name: str, special: bool) -> None:
    dialect = load_dialect(name)
    walker = walker_of(dialect.markers if special else ())
    grammar = dialect.grammar(TOOLS, special_tokens=walker.vocabulary.special_tokens)
    num_calls = [check_calls(name, walker.walk(grammar, seed), list(SCHEMAS)) for seed in range(12)]
    assert min(num_calls) == 1
    assert max(num_calls) > 1


@pytest.mark.parametrize("name", dialect_names())
def test_one_call_of_a_named_tool(name: str) -> None:
    for tool, seed in itertools.product(SCHEMAS, range(4)):
        grammar = load_dialect(name).grammar(TOOLS, names=[tool], parallel=False)
        assert check_calls(name, walker_of(()).walk(grammar, seed), [tool]) == 1


@pytest.mark.parametrize("name", dialect_names())
def test_grammars_take_what_models_write(name: str) -> None:
    text = TWO_CALLS[name].replace("'", '"')  # strings under a grammar are JSON's
    tools = [Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}}), TOOLS[2]]
    for markers in ((), load_dialect(name).markers):
        walker = walker_of(markers)
        grammar = load_dialect(name).grammar(tools, special_tokens=walker.vocabulary.special_tokens)
        assert walker.accepts(grammar, walker.ids(text))
        only_one = load_dialect(name).grammar(tools, parallel=False, special_tokens=walker.vocabulary.special_tokens)
        assert not walker.accepts(only_one, walker.ids(text))


def test_a_real_vocabulary(smollm2_path: Path) -> None:
    walker = Walker(RealVocabulary(load_tokenizer(smollm2_path)))
    for name in dialect_names():
        grammar = load_dialect(name).grammar(TOOLS, reasoning=THINK)
        text = walker.walk(grammar, 1)
        assert check_calls(name, text.rpartition("</think>")[2].lstrip("\n"), list(SCHEMAS)) > 0


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_comes_before_calls(is_open: bool, special: bool) -> None:
    dialect = load_dialect("hermes")
    walker = walker_of((*dialect.markers, THINK.start, THINK.end) if special else ())
    grammar = dialect.grammar(
        TOOLS,
        names=["now"],
        reasoning=THINK,
        is_reasoning_open=is_open,
        special_tokens=walker.vocabulary.special_tokens,
    )
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    answers = {call: not is_open, f"so\n</think>\n\n{call}": is_open, f"<think>so</think>{call}": not is_open}
    if is_open and not special:
        answers[f"<think>so</think>{call}"] = True  # there the tag is text as any other
    assert {text: walker.accepts(grammar, walker.ids(text)) for text in answers} == answers


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", MARKED)
def test_strict_tools_amid_free_text(name: str, special: bool) -> None:
    dialect = load_dialect(name)
    walker = walker_of(dialect.markers if special else ())
    grammar = dialect.strict_grammar(TOOLS, special_tokens=walker.vocabulary.special_tokens)
    assert grammar is not None
    call = walker.walk(dialect.grammar(TOOLS, names=["get_weather"], parallel=False), 3)
    loose = walker.walk(dialect.grammar([Tool("now", {"type": "object"})], parallel=False), 3)
    for text in ("", "Hello {[", f"So: {call}", f"{call}\n{loose} and", f"{loose}"):
        assert walker.accepts(grammar, walker.ids(text))
    for text in (call.replace("get_weather", "unknown"), TWO_CALLS[name], f"{dialect.opening} {{}}"):
        assert not walker.accepts(grammar, walker.ids(text))  # TWO_CALLS lacks a required argument


@pytest.mark.parametrize("name", MARKED)
def test_one_strict_call_amid_free_text(name: str) -> None:
    dialect = load_dialect(name)
    walker = walker_of(())
    grammar = dialect.strict_grammar(TOOLS, parallel=False)
    assert grammar is not None
    call = walker.walk(dialect.grammar(TOOLS, names=["get_weather"], parallel=False), 5)
    assert walker.accepts(grammar, walker.ids("Hello"))
    assert walker.accepts(grammar, walker.ids(f"So: {call}"))
    assert not walker.accepts(grammar, walker.ids(f"{call}\n{call}"))


def test_no_constraint_without_a_mark_or_a_strict_tool() -> None:
    assert [load_dialect(name).strict_grammar(TOOLS) for name in BARE] == [None] * len(BARE)
    assert load_dialect("hermes").strict_grammar(TOOLS[1:]) is None


def test_no_tool_to_call() -> None:
    for tools, names in (((), None), (TOOLS, ["other"])):
        with pytest.raises(InvalidRequestError, match="tools has no function") as error:
            load_dialect("hermes").grammar(tools, names=names)
        assert error.value.param == "tool_choice"


def test_keywords_that_cannot_be_enforced() -> None:
    """An error for strict tools, ignored for others."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    dialect = load_dialect("hermes")
    errors = [
        LLMatcher.validate_grammar(dialect.grammar([Tool("f", schema, is_strict)]), walker_of(()).tokenizer)
        for is_strict in (False, True)
    ]
    assert "uniqueItems" in errors[1]
    assert not errors[0] or errors[0].startswith("WARNING")


@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": 3, "required": "a"},
        {"properties": {"a": True, "b": 7, "c": {"type": ["string", "null"]}}, "required": ["d", 1]},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": {"a": {"$ref": "#/nowhere"}, "b": {"anyOf": {}, "enum": 3, "type": {}}}},
    ],
)
def test_odd_schemas_raise_nothing(name: str, schema: dict[str, object]) -> None:
    """Whether they can be compiled is for the compiler to say."""
    tools = [Tool("f", {"type": "object", **schema}, True)]
    dialect = load_dialect(name)
    assert "f" in dialect.grammar(tools)
    dialect.strict_grammar(tools)
    dialect.parser(tools).push(TWO_CALLS[name])
