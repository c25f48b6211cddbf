"""The plots: what is in them, and that the same figures make the same file."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots
from benchmarks.plots import Point


def figures(family: str, arithmetic: str, num_tokens: int, place: str, seconds: float) -> dict[str, Any]:
    work = {"bytes": 1000, "operations": 2000 * num_tokens, "seconds": seconds}
    return {
        "isa": "avx2",
        "family": family,
        "arithmetic": arithmetic,
        "num_tokens": num_tokens,
        "place": place,
        **work,
    }


KERNELS: dict[str, Any] = {
    "threads": 2,
    "limits": {
        "scalar": {"memory": {"median": 1.0}, "l3": {"median": 2.0}, "l2": {"median": 3.0}, "f32": {"median": 4.0}},
        "avx2": {
            "memory": {"median": 29.0},
            "l3": {"median": 151.0},
            "l2": {"median": 233.0},
            "f32": {"median": 222.0},
            "int8": {"median": 444.0},
        },
    },
    "kernels": [
        figures("q4_1", "int8", 1, "memory", 5e-8),
        figures("q4_1", "int8", 16, "l2", 1e-7),
        figures("f16", "f32", 1, "memory", 6e-8),
        figures("attention, float16", "f32", 1, "memory", 9e-8),
    ],
}
GROWTH = {
    "models": {
        "smollm2-135m": [
            {"prompt_len": 16, "context": 32, "prefill": 0.01, "tpot": 0.005},
            {"prompt_len": 1000, "context": 1016, "prefill": 0.9, "tpot": 0.007},
        ]
    }
}


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    for name, content in (("kernels", KERNELS), ("growth", GROWTH)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return draw(tmp_path, "docs")


def draw(folder: Path, out: str) -> Path:
    sources = ["--kernels", str(folder / "kernels.json"), "--growth", str(folder / "growth.json")]
    plots.main([*sources, "--out", str(folder / out)])
    return folder / out


def texts(path: Path) -> str:
    return " ".join("".join(node.itertext()) for node in ElementTree.parse(path).iter() if node.tag.endswith("text"))


def test_the_roofline_shows_roofs_and_families_of_the_best_level(drawn: Path) -> None:
    shown = texts(drawn / "roofline.svg")
    for text in ("avx2, 2 threads", "memory 29 GB/s", "L3 151 GB/s", "int8 444 GOP/s", "f32 222 GOP/s", "q4_1", "f16"):
        assert text in shown
    assert "attention, float16" in shown
    assert "f32 4 GOP/s" not in shown


def test_growth_shows_both_costs(drawn: Path) -> None:
    shown = texts(drawn / "growth.svg")
    for text in ("smollm2-135m", "seconds to the first token", "ms per token"):
        assert text in shown


def test_drawing_again_changes_nothing(drawn: Path) -> None:
    again = draw(drawn.parent, "again")
    for name in ("roofline.svg", "growth.svg"):
        assert (drawn / name).read_bytes() == (again / name).read_bytes()


def test_no_background_hides_a_dark_page(drawn: Path) -> None:
    for name in ("roofline.svg", "growth.svg"):
        content = (drawn / name).read_text("utf-8")
        assert "fill: #ffffff" not in content
        assert "#000000" not in content


def test_coordinates_are_operations_per_byte_and_gigaops() -> None:
    point = Point.from_figures(figures("q4_1", "int8", 16, "l2", 1e-7))
    assert (point.intensity, point.gigaops, point.is_from_memory) == (32.0, pytest.approx(320.0), False)


def test_the_line_goes_through_the_medians_of_the_shapes() -> None:
    points = [Point("q4_1", tokens, True, 2.0 * tokens, rate) for tokens in (16, 1) for rate in (30.0, 10.0, 20.0)]
    assert [(p.num_tokens, p.intensity, p.gigaops) for p in plots.middle(points)] == [(1, 2.0, 20.0), (16, 32.0, 20.0)]
