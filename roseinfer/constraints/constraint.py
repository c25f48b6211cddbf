"""A compiled grammar, and one request's place in it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import numpy as np
from llguidance import LLMatcher

from roseinfer.constraints.limits import MAX_STEP_SECONDS
from roseinfer.constraints.refusal import refusal_of
from roseinfer.constraints.vocabulary import GrammarVocabulary
from roseinfer.core.batch import UInt32Array
from roseinfer.core.errors import EngineError, RoseinferError
from roseinfer.core.messages import GrammarKind

_LIMITS = re.compile("lexer error|items; max|Too many items")  # what the library says when one is reached


class CompiledGrammar:
    """Thread safe. Its requests share the lexer's states, which makes their masks cheaper the more there are.

    They also share its end, when one of them needs too many states: each of the others goes on with a lexer of its own.
    """

    def __init__(self, kind: GrammarKind, vocabulary: GrammarVocabulary, compile_matcher: Callable[[], LLMatcher]):
        self.kind = kind
        self.vocabulary = vocabulary
        self._compile = compile_matcher
        self._lock = threading.Lock()
        self._matcher = compile_matcher()
        if self._matcher.is_error():
            raise refusal_of(kind, self._matcher.get_error())

    def start(self) -> Constraint:
        return Constraint(self)

    def copy_matcher(self) -> tuple[LLMatcher, LLMatcher]:
        """A matcher at the grammar's start, and the one whose lexer it shares."""
        with self._lock:
            return self._matcher.deep_copy(), self._matcher

    def own_matcher(self, worn_out: LLMatcher) -> LLMatcher:
        """One that shares nothing, for a request that shared `worn_out`'s lexer; later ones get a new one to share."""
        with self._lock:
            if self._matcher is worn_out:
                self._matcher = self._compile()
        return self._compile()


class Constraint:
    """For one thread. After an error it is of no more use.

    The caller is to blame, with an `InvalidRequestError`, where the grammar leads to a place that no token of the
    vocabulary can leave, or that takes too long to compute.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        matcher, origin = grammar.copy_matcher()
        self._matcher = matcher
        self._origin: LLMatcher | None = origin  # None once its lexer is its own
        self._token_ids: list[int] = []
        self._words = np.empty(grammar.vocabulary.num_words, np.uint32)

    @property
    def is_finished(self) -> bool:
        """Nothing but the end may follow: the answer is complete."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def accept(self, token_id: int) -> None:
        """Moves on. Raises EngineError for a token that the mask forbids."""
        if not 0 <= token_id < self._grammar.vocabulary.num_tokens:
            raise EngineError(f"token {token_id} is none of the grammar's vocabulary")
        self._token_ids.append(token_id)
        if not self._matcher.consume_token(token_id) and not self._renew():
            raise self._error()

    def fill_mask(self, row: UInt32Array) -> None:
        """The tokens that may come next, into `row` [ceil(vocab_size / 32)]: bit i of word w is token 32 w + i.

        Runs without the interpreter's lock.
        """
        seconds = self._compute()
        if self._matcher.is_error() and self._renew():
            seconds = self._compute()
        if self._matcher.is_error():
            raise self._error()
        if seconds > MAX_STEP_SECONDS:
            raise refusal_of(self._grammar.kind, "it takes too long to tell what may come next")
        num_words = min(len(row), len(self._words))
        row[:num_words] = self._words[:num_words]
        row[num_words:] = 0

    def _compute(self) -> float:
        """Seconds of processor time it took."""
        started = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        num_tokens = self._grammar.vocabulary.num_tokens
        if num_tokens % 32:  # an end token of the library's own may stand behind the vocabulary
            self._words[num_tokens // 32] &= np.uint32((1 << num_tokens % 32) - 1)
        return time.thread_time() - started

    def _renew(self) -> bool:
        """True if a shared lexer was worn out, perhaps by others, and an own one has taken its place."""
        if self._origin is None or "lexer error" not in self._message():
            return False
        self._matcher, self._origin = self._grammar.own_matcher(self._origin), None
        return self._matcher.consume_tokens(self._token_ids)

    def _error(self) -> RoseinferError:
        message = self._message()
        if message == "NoExtensionBias":
            message = "it leads to a place where no token of the model's vocabulary may follow"
        elif not _LIMITS.search(message):
            return EngineError(f"the grammar refuses the answer: {message or 'no reason given'}")
        return refusal_of(self._grammar.kind, message)

    def _message(self) -> str:
        """Of an error; the library's stop reason is the same for all of them."""
        return self._matcher.get_error().partition("\n")[0]
