from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from roseinfer.constraints import CompiledGrammar, GrammarCompiler, TokenTable, grammar_of_json_object
from roseinfer.core.errors import EngineError, InvalidRequestError, OverloadedError
from roseinfer.core.messages import Grammar
from tests.constraints.walker import allowed_ids, byte_table, feed

HANGS = Grammar(kind="lark", text="start: T\nT: " + " & ".join(f"/(?s:.*)w{i}z(?s:.*)/" for i in range(40)))


def regex(text: str) -> Grammar:
    return Grammar(kind="regex", text=text)


class Reader:
    """Counts how often the vocabulary was read."""

    def __init__(self) -> None:
        self.table = byte_table()
        self.num_reads = 0

    def __call__(self) -> TokenTable:
        self.num_reads += 1
        return self.table


def test_nothing_is_started_before_the_first_grammar() -> None:
    reader, before = Reader(), threading.active_count()
    compiler = GrammarCompiler(reader)
    assert (reader.num_reads, threading.active_count()) == (0, before)
    compiler.compile(regex("a"))
    compiler.compile(regex("b"))
    assert (reader.num_reads, threading.active_count()) == (1, before + 1)
    compiler.close()
    assert threading.active_count() == before


def test_the_same_grammar_at_once_is_compiled_once() -> None:
    compiler = GrammarCompiler(Reader())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: compiler.compile(grammar_of_json_object()), range(32)))
    assert len(set(map(id, found))) == 1
    compiler.close()


def test_one_caller_who_leaves_takes_nothing_from_the_others() -> None:
    compiler = GrammarCompiler(Reader(), max_seconds=0.4)
    first = compiler.submit(HANGS)
    one, other = compiler.submit(regex("a")), compiler.submit(regex("a"))
    assert one.cancel()
    assert feed(other.result().start(), "a").is_finished
    with pytest.raises(InvalidRequestError, match=r"takes more than 0\.2 s"):
        first.result()
    compiler.close()


def test_the_least_recently_used_is_forgotten() -> None:
    compiler = GrammarCompiler(Reader(), max_cached=2)
    a, b = compiler.compile(regex("a")), compiler.compile(regex("b"))
    assert compiler.compile(regex("a")) is a
    compiler.compile(regex("c"))
    assert compiler.compile(regex("a")) is a
    assert compiler.compile(regex("b")) is not b
    compiler.close()


def test_kind_and_text_tell_grammars_apart(compiler: GrammarCompiler, bytes_table: TokenTable) -> None:
    text = 'start: "x"'
    spelled = compiler.compile(Grammar(kind="regex", text=text)).start()
    parsed = compiler.compile(Grammar(kind="lark", text=text)).start()
    assert allowed_ids(spelled, bytes_table) == [ord("s")]
    assert allowed_ids(parsed, bytes_table) == [ord("x")]


def test_too_many_waiting_are_refused() -> None:
    compiler = GrammarCompiler(Reader(), max_pending=2, max_seconds=1.0)
    compiler.compile(regex("up"))
    waiting = [compiler.submit(HANGS)]
    while compiler._queue:  # until it is being compiled
        time.sleep(0.001)
    waiting += [compiler.submit(regex("a")), compiler.submit(regex("b"))]
    with pytest.raises(OverloadedError, match="2 grammars"):
        compiler.submit(regex("c"))
    waiting.append(compiler.submit(regex("a")))  # costs nothing more
    compiler.close()
    assert all(future.done() for future in waiting)


def test_closing_fails_those_that_wait() -> None:
    compiler = GrammarCompiler(Reader(), max_seconds=1.0)
    compiler.compile(regex("up"))
    running, waiting = compiler.submit(HANGS), compiler.submit(regex("a"))
    compiler.close()
    compiler.close()
    assert is_closed(running) or isinstance(running.exception(), InvalidRequestError)
    assert is_closed(waiting)
    with pytest.raises(EngineError, match="closed"):
        compiler.submit(regex("b"))


def is_closed(future: Future[CompiledGrammar]) -> bool:
    return isinstance(future.exception(timeout=5), EngineError)


def test_a_closed_compiler_leaves_no_process() -> None:
    compiler = GrammarCompiler(Reader())
    compiler.compile(regex("a"))
    process = compiler._trial._process
    assert process is not None
    assert process.poll() is None
    compiler.close()
    assert process.returncode is not None


def test_the_process_ends_with_its_input() -> None:
    compiler = GrammarCompiler(Reader())
    compiler.compile(regex("a"))
    process = compiler._trial._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()  # as when the server is killed
    assert process.wait(timeout=5) == 0
    compiler.close()


def test_a_process_that_was_killed_is_replaced() -> None:
    compiler = GrammarCompiler(Reader())
    compiler.compile(regex("a"))
    process = compiler._trial._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert feed(compiler.compile(regex("b")).start(), "b").is_finished
    compiler.close()


def test_a_vocabulary_that_cannot_be_read_is_the_error_of_the_request_and_tried_again() -> None:
    reader, is_broken = Reader(), [True]

    def read() -> TokenTable:
        if is_broken:
            raise EngineError("no tokenizer")
        return reader()

    compiler = GrammarCompiler(read)
    with pytest.raises(EngineError, match="no tokenizer"):
        compiler.compile(regex("a"))
    is_broken.clear()
    compiler.compile(regex("a"))
    compiler.close()


def test_an_idle_compiler_can_be_closed() -> None:
    compiler = GrammarCompiler(Reader())
    compiler.close()
    with pytest.raises(EngineError):
        compiler.compile(regex("a"))


def test_grammars_that_nobody_waits_for_any_more_are_not_compiled(bytes_table: TokenTable) -> None:
    compiler = GrammarCompiler(lambda: bytes_table, max_pending=4)
    try:
        compiler.compile(Grammar("regex", "warm"))
        slow = [Grammar("regex", f"({number}a{{1,300}}b?){{1,300}}") for number in range(3)]
        left = [compiler.submit(grammar) for grammar in slow * 30]
        assert all(future.cancel() or future.done() for future in left)
        assert all(compiler.compile(Grammar("regex", f"x{number}")) for number in range(8))
        assert not any(future.cancelled() for future in [compiler.submit(slow[0])])
    finally:
        compiler.close()
