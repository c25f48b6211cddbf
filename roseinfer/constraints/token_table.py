"""What a grammar has to know of a vocabulary, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenTable:
    """`tokens[i]` is the bytes of token id i, b"" where it has none; a special token's are its name.

    A special token is never text: only a grammar that names it allows it. `eos_ids` end a generation and are
    allowed where the grammar is complete. `vocab_size` is the width of the model's logits, at least `len(tokens)`.
    """

    tokens: Sequence[bytes]
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]
    vocab_size: int
