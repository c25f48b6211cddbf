"""The machine's limits as the kernel benchmark gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import limits
from benchmarks.limits import Limits
from roseinfer.backends.native import _native


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.001)
    monkeypatch.setattr(limits, "MEMORY_BYTES", 8 << 20)
    monkeypatch.setattr(limits, "L3_BYTES", 4 << 20)
    monkeypatch.setattr(limits, "l3_bytes", lambda: 1 << 20)


def test_cache_sizes_are_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHES", tmp_path)
    assert limits.cache_bytes(2, 77) == 77
    for index, (level, size) in enumerate([("1", "32K"), ("2", "1024K"), ("3", "98304K")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(level + "\n")
        (folder / "size").write_text(size + "\n")
    assert limits.cache_bytes(2, 77) == 1 << 20
    assert limits.cache_bytes(3, 77) == 96 << 20


def test_every_limit_is_sampled_each_time() -> None:
    measured = Limits(_native.available_isas(), _native.ThreadPool(2))
    for _ in range(3):
        measured.measure()
    for isa, samples in measured.samples.items():
        assert set(samples) == set(_native.peak_kinds(isa)) - {"read"} | {"memory", "l3", "l2"}
        assert all(len(values) == 3 and min(values) > 0 for values in samples.values())


def test_summary_is_median_and_best() -> None:
    measured = Limits(["scalar"], _native.ThreadPool(1))
    measured.samples["scalar"] |= {"memory": [20.0, 31.0, 24.0], "f32": [7.0]}
    assert measured.summary() == {
        "scalar": {"memory": {"median": 24.0, "best": 31.0}, "f32": {"median": 7.0, "best": 7.0}}
    }
    assert measured.median("scalar", "memory") == 24.0
    assert (measured.has("scalar", "f32"), measured.has("scalar", "int8")) == (True, False)
    table = list(measured.table())
    assert "24 (31)" in next(row for row in table if row.startswith("memory"))
    assert next(row for row in table if row.startswith("int8")).endswith(" -")


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    limits.main(["--threads", "1", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert all(isa in printed for isa in _native.available_isas())
    assert all(kind in printed for kind in limits.UNITS)
