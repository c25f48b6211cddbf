"""Tests marked `cuda` need a device; the others run on one where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import triton

from tests.interpreted import keep_language_patched

if triton.knobs.runtime.interpret:
    keep_language_patched()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if triton.knobs.runtime.interpret:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
