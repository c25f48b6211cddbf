from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from roseinfer.core.interpreter import settle_interpreter


@pytest.fixture
def restored() -> Iterator[None]:
    thresholds, seconds = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(seconds)


def test_what_is_loaded_is_not_collected_again_and_threads_take_turns_quickly(restored: None) -> None:
    survivor = [[]]
    settle_interpreter()
    assert gc.get_freeze_count() > 1000
    assert not any(each is survivor for each in gc.get_objects())
    assert gc.isenabled()
    assert gc.get_threshold()[0] > 700
    assert sys.getswitchinterval() < 0.001
