"""What the tests of constraints share: compilers over a vocabulary of bytes and over a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from roseinfer.constraints import GrammarCompiler, TokenTable
from roseinfer.text import load_tokenizer
from tests.constraints.walker import byte_table, table_of


@pytest.fixture(scope="session")
def bytes_table() -> TokenTable:
    """The 256 bytes, three words and three special tokens; the logits are wider."""
    specials = (b"<eos>", b"<tool_call>", b"<eos_of_turn>")
    return byte_table(b"hello", b'{"', b"  ", specials=specials, vocab_size=300)


@pytest.fixture(scope="session")
def compiler(bytes_table: TokenTable) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(lambda: bytes_table)
    yield compiler
    compiler.close()


@pytest.fixture(scope="session")
def smollm2_table(smollm2_path: Path) -> TokenTable:
    return table_of(load_tokenizer(smollm2_path), vocab_size=49_200)


@pytest.fixture(scope="session")
def smollm2_compiler(smollm2_table: TokenTable) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(lambda: smollm2_table)
    yield compiler
    compiler.close()
