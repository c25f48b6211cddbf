"""Draws docs/roofline.svg and docs/growth.svg from what benchmarks/kernels.py and benchmarks/growth.py have measured.

    python -m benchmarks.plots [--kernels build/bench/kernels.json] [--growth build/bench/growth.json] [--out docs]

Nothing is drawn on a background and all lines and letters are of middle brightness, so that the plots can be read on
a light and on a dark page.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

INK = "#808080"
COLOURS = (
    "#3b82c4",
    "#d9822b",
    "#3d9a50",
    "#c94f4f",
    "#8d6cc4",
    "#a0705c",
    "#d06cb0",
    "#7f9a2e",
    "#2ba3ae",
    "#b58900",
    "#5f8f8a",
    "#b0616e",
    "#6a7fd0",
)
PLACES = {"memory": "memory", "l3": "L3", "l2": "L2"}
LINEAR_PANELS = ("int8", "bf16", "f32")
OFFSET = "offset points"
STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small, and in the reader's own font
    "svg.hashsalt": "roseinfer",  # the same figures make the same file
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.transparent": True,
}


@dataclass(frozen=True)
class Point:
    """One kernel at one size in the roofline's coordinates."""

    family: str
    num_tokens: int
    is_from_memory: bool
    intensity: float  # operations per byte
    gigaops: float  # operations per nanosecond

    @classmethod
    def from_figures(cls, figures: dict[str, Any]) -> Point:
        operations, seconds = figures["operations"], figures["seconds"]
        intensity, rate = operations / figures["bytes"], operations / seconds / 1e9
        return cls(figures["family"], figures["num_tokens"], figures["place"] == "memory", intensity, rate)


def is_attention(figures: dict[str, Any]) -> bool:
    return str(figures["family"]).startswith("attention")


def best_isa(kernels: dict[str, Any]) -> str:
    """Levels are listed lowest first."""
    return str(list(kernels["limits"])[-1])


def middle(points: list[Point]) -> list[Point]:
    """The medians over the shapes of one family, by number of tokens."""
    line = []
    for num_tokens in sorted({p.num_tokens for p in points}):
        group = [p for p in points if p.num_tokens == num_tokens]
        intensity = statistics.median(p.intensity for p in group)
        line.append(replace(group[0], intensity=intensity, gigaops=statistics.median(p.gigaops for p in group)))
    return line


# -- roofline -----------------------------------------------------------------------------------------------------


def roofline(kernels: dict[str, Any]) -> Figure:
    """A panel per arithmetic of the linears, and one for attention; the best instruction set of the file."""
    isa = best_isa(kernels)
    limits = {kind: figures["median"] for kind, figures in kernels["limits"][isa].items()}
    measured = [figures for figures in kernels["kernels"] if figures["isa"] == isa]
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, arithmetic in zip(panels, LINEAR_PANELS, strict=False):
        chosen = [f for f in measured if f["arithmetic"] == arithmetic and not is_attention(f)]
        draw_roofline(axes, f"linears, {arithmetic} activations", limits, [arithmetic], chosen)
    draw_roofline(panels[3], "attention", limits, LINEAR_PANELS, [f for f in measured if is_attention(f)])
    figure.suptitle(
        f"{isa}, {kernels['threads']} threads; filled: from memory, hollow: from the caches, numbers: tokens"
    )
    return figure


def draw_roofline(
    axes: Axes, title: str, limits: dict[str, float], arithmetics: Iterable[str], measured: list[dict[str, Any]]
) -> None:
    points = [Point.from_figures(figures) for figures in measured]
    axes.set(title=title, xlabel="operations per byte", ylabel="GOP/s")
    use_log_scales(axes)
    known = dict.fromkeys(kind if kind in limits else "f32" for kind in arithmetics)
    draw_roofs(axes, limits, list(known), points)
    families = sorted({p.family for p in points})
    for colour, family in zip(COLOURS, families, strict=False):
        draw_family(axes, colour, family, [p for p in points if p.family == family], family == families[-1])
    if families:
        axes.legend(loc="lower right", ncols=2)


def use_log_scales(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    for axis, digits in ((axes.xaxis, (1,)), (axes.yaxis, (1, 2, 5))):
        axis.set_major_locator(LogLocator(subs=digits, numticks=30))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def draw_roofs(axes: Axes, limits: dict[str, float], arithmetics: list[str], points: list[Point]) -> None:
    """Sloping ones for the places that bytes come from, level ones for the arithmetic."""
    peak = max(limits[kind] for kind in arithmetics)
    left = min((p.intensity for p in points), default=1.0) / 2
    right = max((p.intensity for p in points), default=1.0) * 2
    for place, name in PLACES.items():
        bend = peak / limits[place]
        axes.plot([left, bend], [left * limits[place], peak], color=INK, linewidth=1)
        label = f"{name} {limits[place]:.0f} GB/s"
        text = axes.text(left * 1.1, left * 1.1 * limits[place], label, va="bottom", fontsize=7)
        text.set(rotation=math.degrees(math.atan(limits[place])), rotation_mode="anchor", transform_rotates_text=True)
    for kind in arithmetics:
        axes.plot([limits[kind] / limits["l2"], right], [limits[kind]] * 2, color=INK, linewidth=1)
        axes.text(right, limits[kind] * 1.05, f"{kind} {limits[kind]:.0f} GOP/s", ha="right", fontsize=7)


def draw_family(axes: Axes, colour: str, family: str, points: list[Point], is_labelled: bool) -> None:
    """The shapes as points, and a line through their middle, labelled with the numbers of tokens."""
    for is_from_memory, fill in ((True, colour), (False, "none")):
        chosen = [p for p in points if p.is_from_memory == is_from_memory]
        x, y = [p.intensity for p in chosen], [p.gigaops for p in chosen]
        axes.plot(x, y, "o", markersize=3.5, color=colour, markerfacecolor=fill, markeredgewidth=0.8)
        line = middle(chosen)
        style = "-" if is_from_memory else "--"
        axes.plot([m.intensity for m in line], [m.gigaops for m in line], style, linewidth=0.8, color=colour)
        if is_labelled:
            for m in line:
                axes.annotate(f"{m.num_tokens}", (m.intensity, m.gigaops), (3, 3), textcoords=OFFSET, fontsize=7)
    axes.plot([], [], "o-", markersize=3.5, color=colour, label=family)


# -- growth -------------------------------------------------------------------------------------------------------


def growth(models: dict[str, list[dict[str, float]]]) -> Figure:
    """Seconds to read a prompt against its length, milliseconds per token against the context."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    prefill, decode = figure.subplots(1, 2)
    for colour, (name, points) in zip(COLOURS, models.items(), strict=False):
        lens, seconds = [p["prompt_len"] for p in points], [p["prefill"] for p in points]
        prefill.plot(lens, seconds, "o-", color=colour, markersize=3.5, label=name)
        prefill.plot(lens, [seconds[0] * n / lens[0] for n in lens], ":", color=colour, linewidth=0.8)
        contexts, milliseconds = [p["context"] for p in points], [p["tpot"] * 1e3 for p in points]
        decode.plot(contexts, milliseconds, "o-", color=colour, markersize=3.5, label=name)
    use_log_scales(prefill)
    prefill.set(xlabel="prompt, tokens", ylabel="seconds to the first token")
    prefill.set_title("prefill (dotted: in proportion to the shortest)")
    decode.set(title="decode", xlabel="context, tokens", ylabel="ms per token", ylim=(0, None), xlim=(0, None))
    prefill.legend()
    return figure


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draws the plots of the documentation.")
    parser.add_argument("--kernels", type=Path, help="of benchmarks/kernels.py --json")
    parser.add_argument("--growth", type=Path, help="of benchmarks/growth.py --json")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        if args.kernels is not None:
            save(roofline(json.loads(args.kernels.read_text("utf-8"))), args.out / "roofline.svg")
        if args.growth is not None:
            save(growth(json.loads(args.growth.read_text("utf-8"))["models"]), args.out / "growth.svg")


if __name__ == "__main__":
    main()
