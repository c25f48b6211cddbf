"""Requests whose grammar is being compiled, which happens on another thread while the engine goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.request import Constraint, Request

if TYPE_CHECKING:
    from roseinfer.constraints import CompiledGrammar, GrammarCompiler


class PendingGrammars:
    """`on_ready` is called whenever a compilation has ended, well or not, from any thread."""

    def __init__(self, compiler: GrammarCompiler | None, on_ready: Callable[[], None]) -> None:
        self._compiler = compiler
        self._on_ready = on_ready
        self._pending: dict[str, tuple[Request, Future[CompiledGrammar]]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._pending

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def has_ready(self) -> bool:
        return any(future.done() for _, future in self._pending.values())

    def add(self, request: Request) -> None:
        """Starts to compile the request's grammar."""
        if self._compiler is None or request.params.grammar is None:
            raise InvalidRequestError("grammars are not supported here", "grammar")
        future = self._compiler.submit(request.params.grammar)
        self._pending[request.request_id] = (request, future)
        future.add_done_callback(lambda _: self._on_ready())

    def remove(self, request_id: str) -> bool:
        """Forgets a request, if it is here. Where others wait for the same grammar, they have futures of their own."""
        if request_id not in self._pending:
            return False
        _, future = self._pending.pop(request_id)
        future.cancel()
        return True

    def take_ready(self) -> list[tuple[Request, Future[CompiledGrammar]]]:
        """In the order in which they were added."""
        ready = [(request, future) for request, future in self._pending.values() if future.done()]
        for request, _ in ready:
            del self._pending[request.request_id]
        return ready


def start_constraint(grammar: CompiledGrammar, request: Request) -> Constraint:
    """Where the request is by now: behind the output that was accepted before."""
    constraint = grammar.start()
    output_ids = request.output_ids
    for token_id in output_ids[:-1] if request.stop_token_id is not None else output_ids:
        constraint.accept(token_id)
    return constraint
