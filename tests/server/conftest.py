"""A live server on a free port, with a model of bytes behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.server.live import LiveServer, StartServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """For tests that leave it as they found it."""
    with serving() as live:
        yield live


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """For tests that want one with settings of their own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(**settings))
