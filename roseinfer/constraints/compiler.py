"""Compiles grammars on a thread of its own and keeps those that were used last."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from roseinfer.constraints.limits import MAX_COMPILE_SECONDS, NICENESS, WORKER_STACK_BYTES, parser_limits
from roseinfer.constraints.refusal import refusal_of
from roseinfer.constraints.source import source_of
from roseinfer.constraints.token_table import TokenTable
from roseinfer.constraints.trial import CompileTrial
from roseinfer.core.errors import EngineError, OverloadedError
from roseinfer.core.messages import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from roseinfer.constraints.constraint import CompiledGrammar
    from roseinfer.constraints.vocabulary import GrammarVocabulary
    from roseinfer.core.batch import UInt32Array

logger = logging.getLogger(__name__)


class GrammarCompiler:
    """One per engine, thread safe. The vocabulary is read, and all else started, with the first grammar.

    Within `max_seconds` of its turn a grammar is compiled or refused: a process of its own tries it for half of
    that first. `max_pending` grammars may wait; up to `max_cached` are kept, each for at most some 30 MiB.
    """

    def __init__(
        self,
        read_tokens: Callable[[], TokenTable],
        *,
        max_cached: int = 32,
        max_pending: int = 32,
        max_seconds: float = MAX_COMPILE_SECONDS,
    ) -> None:
        self._read_tokens = read_tokens
        self._max_cached = max_cached
        self._max_pending = max_pending
        self._trial = CompileTrial(max_seconds / 2)
        self._vocabulary: GrammarVocabulary | None = None
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()  # guards what follows
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()  # least recently used first
        self._wanted: dict[Grammar, list[Future[CompiledGrammar]]] = {}
        self._queue: deque[Grammar] = deque()
        self._is_closed = False

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Blocks. Raises InvalidRequestError with the reason, OverloadedError if too many are waiting."""
        return self.submit(grammar).result()

    def submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The same without waiting; several requests for one grammar are one compilation.

        Raises OverloadedError, and EngineError after `close`.
        """
        future: Future[CompiledGrammar] = Future()
        with self._condition:
            if self._is_closed:
                raise EngineError("the grammar compiler is closed")
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
                future.set_result(compiled)
                return future
            if grammar not in self._wanted:
                self._enqueue(grammar)
            self._wanted[grammar].append(future)
        return future

    def close(self) -> None:
        """Waits for the grammar that is being compiled; those that wait fail with an EngineError. Idempotent."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _enqueue(self, grammar: Grammar) -> None:
        self._forget_unwanted()
        if len(self._queue) >= self._max_pending:
            raise OverloadedError(f"{self._max_pending} grammars are waiting to be compiled")
        self._wanted[grammar] = []
        self._queue.append(grammar)
        if self._thread is None:
            self._thread = _start_thread(self._run)
        self._condition.notify_all()

    def _run(self) -> None:
        _step_back()
        while (grammar := self._next()) is not None:
            try:
                compiled = self._compile(grammar)
            except Exception as error:
                self._fail(grammar, error)
            except BaseException as error:  # a panic of the library is one
                logger.error("compiling a grammar failed", exc_info=error)
                self._fail(grammar, EngineError("compiling the grammar failed"))
            else:
                self._succeed(grammar, compiled)
        self._trial.close()
        for grammar in list(self._wanted):
            self._fail(grammar, EngineError("the grammar compiler is closed"))

    def _next(self) -> Grammar | None:
        with self._condition:
            self._forget_unwanted()
            while not self._queue and not self._is_closed:
                self._condition.wait()
            return None if self._is_closed else self._queue.popleft()

    def _forget_unwanted(self) -> None:
        """Grammars whose callers have all gone."""
        for grammar in list(self._queue):
            if all(future.cancelled() for future in self._wanted[grammar]):
                self._queue.remove(grammar)
                del self._wanted[grammar]

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        from roseinfer.constraints.constraint import CompiledGrammar

        source = source_of(grammar)
        vocabulary = self._vocabulary or self._read_vocabulary()
        complaint = self._trial.complaint(source)
        if complaint:
            raise refusal_of(grammar.kind, complaint)
        compiled = CompiledGrammar(grammar.kind, vocabulary, lambda: _compile_source(vocabulary, source))
        # Finds dead ends, and warms what all of its requests share.
        compiled.start().fill_mask(_empty_row(vocabulary))
        return compiled

    def _read_vocabulary(self) -> GrammarVocabulary:
        from roseinfer.constraints.vocabulary import GrammarVocabulary

        table = self._read_tokens()
        self._trial.start(table)  # comes up while the vocabulary is built
        self._vocabulary = GrammarVocabulary(table)
        return self._vocabulary

    def _succeed(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        with self._condition:
            self._compiled[grammar] = compiled
            while len(self._compiled) > self._max_cached:
                self._compiled.popitem(last=False)
            futures = self._wanted.pop(grammar)
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_result(compiled)

    def _fail(self, grammar: Grammar, error: Exception) -> None:
        with self._condition:
            futures = self._wanted.pop(grammar)
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _compile_source(vocabulary: GrammarVocabulary, source: str) -> LLMatcher:
    from llguidance import LLMatcher

    grammar = json.dumps({"grammars": [{"lark_grammar": source}]})
    return LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=parser_limits())


def _empty_row(vocabulary: GrammarVocabulary) -> UInt32Array:
    import numpy as np

    return np.empty(vocabulary.num_words, np.uint32)


def _step_back() -> None:
    """This thread gets less of a busy machine, where the system has priorities of threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _start_thread(run: Callable[[], None]) -> threading.Thread:
    """With a stack of a known size, which Python can set for all new threads only."""
    thread = threading.Thread(target=run, name="roseinfer-grammars", daemon=True)
    before = threading.stack_size(WORKER_STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)
    return thread
