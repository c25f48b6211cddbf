"""Whatever a random walk writes under a schema, a validator agrees with."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest

from roseinfer.constraints import GrammarCompiler, TokenTable
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar
from tests.constraints.schemas import load_schemas, parse, validator_of
from tests.constraints.walker import Walker, byte_table

SCHEMAS = load_schemas()
WALKS, MOST_WALKS = 3, 8


def as_grammar(schema: Any) -> Grammar:
    return Grammar(kind="json_schema", text=json.dumps(schema))


def test_the_suite_is_large_and_varied() -> None:
    assert len(SCHEMAS) >= 200
    assert len({name for name, _ in SCHEMAS}) == len(SCHEMAS)
    assert len({json.dumps(schema, sort_keys=True) for _, schema in SCHEMAS}) == len(SCHEMAS)


@pytest.fixture(scope="module")
def smollm2_walker(smollm2_table: TokenTable) -> Walker:
    return Walker(smollm2_table)


@pytest.mark.parametrize(("name", "schema"), SCHEMAS, ids=[name for name, _ in SCHEMAS])
def test_every_answer_validates(
    smollm2_compiler: GrammarCompiler, smollm2_walker: Walker, name: str, schema: dict[str, Any]
) -> None:
    grammar, validator = smollm2_compiler.compile(as_grammar(schema)), validator_of(schema)
    num_complete = 0
    for seed in range(MOST_WALKS):
        walk = smollm2_walker.walk(grammar, seed)
        if walk.is_complete:
            num_complete += 1
            validator.validate(parse(walk.text))
        if seed + 1 >= WALKS and num_complete:
            break
    assert num_complete  # a walk may lose itself in a long string, not all of them


WORDS = [
    b"true",
    b"false",
    b"null",
    b'"a"',
    b'"ab"',
    b'"x_1"',
    b'{"',
    b'"}',
    b'":',
    b'","',
    b"[]",
    b"{}",
    b"10",
    b"0.5",
]


class SchemaMaker:
    """Random schemas over few names, so that what they say of one often meets."""

    names = ("a", "b", "x_1", "y")

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def root(self) -> dict[str, Any]:
        body = self.schema(3)
        return {**(body if isinstance(body, dict) else {}), "$defs": {"p": self.leaf(), "q": self.object(1)}}

    def schema(self, depth: int) -> Any:
        rng, kind = self.rng, self.rng.random()
        if depth == 0 or kind < 0.35:
            return self.leaf()
        if kind < 0.6:
            return self.object(depth)
        if kind < 0.72:
            return self.array(depth)
        if kind < 0.82:
            return {rng.choice(["anyOf", "oneOf"]): [self.schema(depth - 1) for _ in range(rng.randint(1, 3))]}
        if kind < 0.9:
            return {"allOf": [self.schema(depth - 1), self.schema(depth - 1)]}
        return {**self.object(depth), rng.choice(["anyOf", "allOf"]): [self.schema(depth - 1), self.schema(depth - 1)]}

    def leaf(self) -> Any:
        rng = self.rng
        return rng.choice(
            [
                True,
                {"type": "integer", "minimum": rng.randint(-3, 3)},
                {"type": "number", "exclusiveMinimum": rng.randint(-1, 1), "maximum": rng.choice([1.25, 2])},
                {"type": "string", "maxLength": rng.randint(0, 4)},
                {"type": "string", "pattern": "^a|b$", "maxLength": 3},
                {"type": ["string", "null"], "minLength": 1, "maxLength": 3},
                {"enum": rng.sample([1, "a", "ab", None, True, 2.5, {"a": 1}, [1]], rng.randint(1, 4))},
                {"const": rng.choice(["a", 1, None, {"b": "a"}])},
                {"minLength": 2, "minimum": 1, "maxLength": 3, "required": ["a"]},
                {"$ref": "#/$defs/" + rng.choice("pq")},
            ]
        )

    def object(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        options = {
            "properties": {name: self.schema(depth - 1) for name in rng.sample(self.names, rng.randint(0, 3))},
            "required": rng.sample(self.names, rng.randint(0, 3)),
            "additionalProperties": rng.choice([False, True, self.leaf()]),
            "patternProperties": {rng.choice(["^x_", "a", "b$"]): self.schema(depth - 1)},
            "minProperties": rng.randint(0, 2),
            "maxProperties": rng.randint(0, 3),
        }
        chances = {"properties": 0.8, "patternProperties": 0.25, "minProperties": 0.1, "maxProperties": 0.1}
        kept = {key: value for key, value in options.items() if rng.random() < chances.get(key, 0.5)}
        return {"type": "object", **kept}

    def array(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        options = {
            "items": rng.choice([self.schema(depth - 1), False]),
            "prefixItems": [self.schema(depth - 1) for _ in range(rng.randint(1, 3))],
            "minItems": rng.randint(0, 2),
        }
        kept = {key: value for key, value in options.items() if rng.random() < 0.5}
        return {"type": "array", "maxItems": rng.randint(0, 4), **kept}


def test_random_schemas_are_refused_or_enforced() -> None:
    table = byte_table(*WORDS)
    walker, compiler, num_checked = Walker(table), GrammarCompiler(lambda: table, max_cached=1), 0
    for seed in range(300):
        schema = SchemaMaker(seed).root()
        try:
            grammar = compiler.compile(as_grammar(schema))
        except InvalidRequestError:
            continue
        validator = validator_of(schema)
        for walk in (walker.walk(grammar, i, patience=12) for i in range(4)):
            if walk.is_complete:
                num_checked += 1
                assert validator.is_valid(parse(walk.text)), (schema, walk.text)
    compiler.close()
    assert num_checked > 500


def test_numbers_keep_to_their_bounds() -> None:
    table = byte_table()
    compiler, rng, num_checked = GrammarCompiler(lambda: table, max_cached=1), random.Random(0), 0
    for _ in range(250):
        schema = random_bounds(rng)
        try:
            grammar = compiler.compile(as_grammar(schema))
        except InvalidRequestError:
            continue
        validator = validator_of(schema)
        for walk in (Walker(table).walk(grammar, seed, patience=4, max_steps=40) for seed in range(8)):
            if walk.is_complete:
                num_checked += 1
                assert validator.is_valid(parse(walk.text)), (schema, walk.text)
    compiler.close()
    assert num_checked > 500


def random_bounds(rng: random.Random) -> dict[str, Any]:
    """Two bounds near each other and near a whole number, where mistakes are."""
    base = rng.choice([0, 0, 1, -1, 5, -7, 100])
    low = float(base - Decimal(rng.choice([0, 0, 1, 5, 15, 300])) / 100)
    high = float(base + Decimal(rng.choice([0, 0, 1, 5, 15, 300])) / 100)
    lows, highs = ["minimum", "exclusiveMinimum"], ["maximum", "exclusiveMaximum"]
    whole = {"type": rng.choice(["number", "number", "integer"])}
    return whole | {rng.choice(lows): low} | {rng.choice(highs): high}
