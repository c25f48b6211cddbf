"""Byte ranges of tensors in a file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from roseinfer.core.errors import CheckpointError


def require_disjoint(spans: Iterable[tuple[int, int, str]]) -> None:
    """No two of the (begin, end, name) overlap."""
    for (_, end, name), (begin, _, other) in pairwise(sorted(spans)):
        if begin < end:
            raise CheckpointError(f"tensors {name!r} and {other!r} overlap")
