"""Random walks through a constraint, and vocabularies to take them in."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from roseinfer.constraints import CompiledGrammar, Constraint, TokenTable
from roseinfer.core.batch import UInt32Array
from roseinfer.text import Tokenizer

_CLOSERS = b'"}]'


def _closes(token: bytes) -> bool:
    return token == b"null" or (len(token) < 4 and any(byte in token for byte in _CLOSERS))


def table_of(tokenizer: Tokenizer, vocab_size: int | None = None) -> TokenTable:
    size = tokenizer.vocab_size
    tokens = [tokenizer.token_bytes(i) for i in range(size)]
    special = frozenset(i for i in range(size) if tokenizer.is_special(i))
    return TokenTable(tokens, special, tokenizer.eos_ids, vocab_size or size)


def byte_table(*words: bytes, specials: tuple[bytes, ...] = (b"<eos>",), vocab_size: int = 0) -> TokenTable:
    """Ids 0-255 are the bytes, then `words`, then `specials`, of which those that say "eos" end a generation."""
    tokens = [bytes([byte]) for byte in range(256)] + list(words) + list(specials)
    first = 256 + len(words)
    eos_ids = tuple(first + i for i, name in enumerate(specials) if b"eos" in name)
    return TokenTable(tokens, frozenset(range(first, len(tokens))), eos_ids, max(vocab_size, len(tokens)))


def mask_of(constraint: Constraint, table: TokenTable) -> UInt32Array:
    row = np.full(-(-table.vocab_size // 32), 0xFFFFFFFF, np.uint32)
    constraint.fill_mask(row)
    return row


def allowed_ids(constraint: Constraint, table: TokenTable) -> list[int]:
    bits = np.unpackbits(mask_of(constraint, table).view(np.uint8), bitorder="little")
    return [int(i) for i in np.flatnonzero(bits)]


def feed(constraint: Constraint, text: str | bytes) -> Constraint:
    """Byte by byte, with a `byte_table`."""
    for byte in text.encode() if isinstance(text, str) else text:
        constraint.accept(byte)
    return constraint


@dataclass
class Walk:
    text: bytes
    is_complete: bool
    token_ids: list[int] = field(default_factory=list)


class Walker:
    """Takes any allowed token, and the longer the walk, the rather one that closes something."""

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._closers = np.array([_closes(token) for token in table.tokens])
        self._is_byte = np.array([len(token) == 1 for token in table.tokens])
        self._is_eos = np.isin(np.arange(len(table.tokens)), table.eos_ids)

    def walk(self, grammar: CompiledGrammar, seed: int, *, patience: int = 24, max_steps: int = 600) -> Walk:
        rng, constraint = random.Random(seed), grammar.start()
        ids: list[int] = []
        while not constraint.is_finished and len(ids) < max_steps:
            token_id = self._choose(constraint, rng, len(ids) / patience)
            if token_id in self._table.eos_ids:
                return self._result(ids, True)
            constraint.accept(token_id)
            ids.append(token_id)
        return self._result(ids, constraint.is_finished)

    def _choose(self, constraint: Constraint, rng: random.Random, urge: float) -> int:
        bits = np.unpackbits(mask_of(constraint, self._table).view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: len(self._closers)])
        for wanted, chance in ((self._is_eos, 1.0), (self._closers, 0.7), (self._is_byte, 0.7)):
            favoured = allowed[wanted[allowed]]
            if len(favoured) and rng.random() < min(urge, 1) * chance:
                return int(rng.choice(favoured))
        return int(rng.choice(allowed))

    def _result(self, ids: list[int], is_complete: bool) -> Walk:
        return Walk(b"".join(self._table.tokens[i] for i in ids), is_complete, ids)
