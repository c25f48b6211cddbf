"""How much work one grammar may cause; everything beyond is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roseinfer.core import limits

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_SCHEMA_DEPTH = limits.SCHEMA_DEPTH.most
MAX_LARK_SYMBOLS = limits.LARK_SYMBOLS.most
MAX_GBNF_BYTES = limits.GBNF_BYTES.most
MAX_GBNF_RULES = limits.GBNF_RULES.most
MAX_COMPILE_SECONDS = limits.GRAMMAR_SECONDS.most
MAX_STEP_SECONDS = 0.1  # processor time of one mask; usual are 0.01 to 5 ms
MAX_TRIAL_BYTES = 1 << 30
NICENESS = 5  # of all that compiles: those who are being served come first
TRIAL_STACK_BYTES = 1 << 20  # what passes here passes any thread of the server's
WORKER_STACK_BYTES = 16 << 20


def parser_limits() -> LLParserLimits:
    """llguidance's own, counted in its units of work and therefore the same on every machine."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        step_lexer_fuel=200_000,  # about 14 ms
        step_max_items=50_000,  # about 3 ms
        max_lexer_states=50_000,  # about 0.5 KiB each, kept as long as the grammar is
        max_grammar_size=100_000,
        verbose_errors=False,
    )
