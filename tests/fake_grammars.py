"""Grammars without a language: which tokens may follow is a hash of the tokens accepted so far.

So a constraint that misses a token, sees one twice, or belongs to another request changes what is generated.
"""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np

from roseinfer.core.batch import UInt32Array
from roseinfer.core.errors import EngineError, InvalidRequestError
from roseinfer.core.messages import Grammar
from tests.fake_program import mix


def hashed_grammar(num_tokens: int, *, fails_in: str = "", fails_at: int = 0) -> Grammar:
    """Every answer has `num_tokens` tokens; `fails_in` mask or accept, once it has accepted `fails_at` of them."""
    return Grammar("regex", f"{num_tokens} {fails_in or 'nothing'} {fails_at}")


BAD_GRAMMAR = Grammar("lark", "bad")


class FakeConstraint:
    """Allows a third of the vocabulary, ever another one."""

    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        num_tokens, self._fails_in, fails_at = grammar.text.split()
        self._num_tokens, self._fails_at = int(num_tokens), int(fails_at)
        self._vocab_size = vocab_size
        self.accepted: list[int] = []

    def accept(self, token_id: int) -> None:
        self._fail("accept")
        if not self.allowed()[token_id]:
            raise EngineError(f"{token_id} is not allowed")
        self.accepted.append(token_id)

    def fill_mask(self, row: UInt32Array) -> None:
        self._fail("mask")
        bits = np.zeros(32 * len(row), dtype=np.bool_)
        bits[: self._vocab_size] = self.allowed()
        row[:] = np.packbits(bits, bitorder="little").view(np.uint32)

    @property
    def is_finished(self) -> bool:
        return len(self.accepted) == self._num_tokens

    def allowed(self) -> np.ndarray:
        """[vocab_size], bool."""
        state = np.uint64(1)
        with np.errstate(over="ignore"):
            for token_id in self.accepted:
                state = mix(np.array([state * np.uint64(31) + np.uint64(token_id)]))[0]
            allowed: np.ndarray = mix(np.arange(self._vocab_size, dtype=np.uint64) + state) % np.uint64(3) == 0
        return allowed

    def _fail(self, method: str) -> None:
        if method == self._fails_in and len(self.accepted) == self._fails_at:
            raise RuntimeError(f"{method} failed")


class FakeCompiled:
    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        self._grammar, self._vocab_size = grammar, vocab_size

    def start(self) -> FakeConstraint:
        return FakeConstraint(self._grammar, self._vocab_size)


class FakeCompiler:
    """Compiles at once or, if it `is_slow`, when `finish` is called."""

    def __init__(self, vocab_size: int = 50, *, is_slow: bool = False) -> None:
        self.is_closed = False
        self._vocab_size = vocab_size
        self._is_slow = is_slow
        self._waiting: list[tuple[Grammar, Future[FakeCompiled]]] = []

    def submit(self, grammar: Grammar) -> Future[FakeCompiled]:
        future: Future[FakeCompiled] = Future()
        self._waiting.append((grammar, future))
        if not self._is_slow:
            self.finish()
        return future

    def finish(self, count: int | None = None) -> None:
        """The last `count` that were submitted, the latest first."""
        for _ in range(len(self._waiting) if count is None else min(count, len(self._waiting))):
            grammar, future = self._waiting.pop()
            if not future.set_running_or_notify_cancel():
                continue
            if grammar == BAD_GRAMMAR:
                future.set_exception(InvalidRequestError("this is no grammar", "grammar"))
            else:
                future.set_result(FakeCompiled(grammar, self._vocab_size))

    def close(self) -> None:
        self.is_closed = True
