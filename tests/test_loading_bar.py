"""The loading bar: seen by people at a terminal who have to wait, by nobody else."""

from __future__ import annotations

import io
import sys

import pytest

from roseinfer import loading_bar
from roseinfer.loading_bar import LoadingBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "is_seen"), [(Terminal(), 0.0, True), (Terminal(), 60.0, False), (io.StringIO(), 0.0, False)]
)
def test_who_sees_it(stream: io.StringIO, patience: float, is_seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(loading_bar, "PATIENCE_SECONDS", patience)
    with LoadingBar() as bar:
        bar(1_000_000, 4_000_000)
        bar(4_000_000, 4_000_000)
    assert ("loading" in stream.getvalue()) == is_seen
