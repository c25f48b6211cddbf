"""Real English prose that every CPython carries: chapters of its language reference, for tests that need true text."""

from __future__ import annotations

from functools import cache

# Chapters that change least between releases, the steadiest first.
STABLE_TOPICS = (
    "exceptions",
    "objects",
    "context-managers",
    "raise",
    "return",
    "break",
    "continue",
    "pass",
    "del",
    "while",
    "global",
    "lambda",
    "with",
    "import",
    "calls",
    "comparisons",
    "identifiers",
    "numeric-types",
    "typesseq-mutable",
    "subscriptions",
    "slicings",
    "binary",
    "bitwise",
    "shifting",
    "unary",
    "power",
    "booleans",
    "integers",
    "floating",
    "atom-identifiers",
    "naming",
    "function",
    "assignment",
    "strings",
)


@cache
def _all_text() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name].strip() + "\n" for name in STABLE_TOPICS)


def real_text(num_chars: int) -> str:
    """The first `num_chars` characters, headings and markup included; ValueError where there are not so many."""
    text = _all_text()
    if not 0 <= num_chars <= len(text):
        raise ValueError(f"{num_chars} characters of {len(text)}")
    return text[:num_chars]
