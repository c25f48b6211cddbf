"""Results as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roseinfer.bench.metrics import FORMULAS, LATENCIES, STATISTICS, Spread
from roseinfer.bench.results import WorkloadResult

MIB = 1 << 20

# Row → (figure, what one unit of it is divided by).
RATES = {
    "decode tok/s": ("decode_tokens_per_second", 1),
    "prefill tok/s": ("prefill_tokens_per_second", 1),
    "output tok/s": ("output_tokens_per_second", 1),
    "requests/s": ("requests_per_second", 1),
    "wall s": ("wall_seconds", 1),
    "server CPU s": ("server_cpu_seconds", 1),
    "server RSS MiB": ("server_rss_bytes", MIB),
    "  at its peak": ("server_peak_rss_bytes", MIB),
}
COMPARED = {
    "TTFT p50 ms": ("ttft_p50_ms", 1),
    "TTFT p99 ms": ("ttft_p99_ms", 1),
    "TPOT p50 ms": ("tpot_p50_ms", 1),
    "TPOT p99 ms": ("tpot_p99_ms", 1),
    "ITL p99 ms": ("itl_p99_ms", 1),
    "e2e p50 ms": ("e2e_p50_ms", 1),
    **RATES,
}
TITLES = {"ttft": "TTFT ms", "tpot": "TPOT ms", "itl": "ITL ms", "e2e": "e2e ms"}


class Report:
    """Prints as the results come in. `targets` has the facts of each by its label."""

    def __init__(self, targets: Mapping[str, dict[str, Any]], console: Console | None = None) -> None:
        self._targets = targets
        self._console = console or Console(highlight=False)

    def print_targets(self) -> None:
        table = number_table()
        for label, facts in self._targets.items():
            for name, value in facts.items():
                table.add_row(label, name, _shown(value) if isinstance(value, float) else escape(str(value)))
                label = ""
        self._console.print(table)

    def print_workload(self, result: WorkloadResult) -> None:
        self._console.print(f"\n[bold]{result.workload.name}[/]  {result.workload.summary}", soft_wrap=True)
        if len(result.runs) == 1:
            spreads = result.spreads(next(iter(result.runs)))
            self._console.print(_latency_table(spreads), "", _rate_table(spreads))
        else:
            self._console.print(_comparison_table(result))
        for label in result.runs:
            prefix = f"{label}: " if len(result.runs) > 1 else ""
            for note in _notes(result, label):
                self._console.print(f"{prefix}{note}", markup=False)

    def print_formulas(self) -> None:
        table = number_table()
        for name, formula in FORMULAS.items():
            table.add_row(name, formula)
        self._console.print("", table)


def _latency_table(spreads: Mapping[str, Spread]) -> Table:
    table = number_table("", *STATISTICS, "p50: lowest - highest")
    for name in LATENCIES:
        figures = [spreads.get(f"{name}_{statistic}_ms") for statistic in STATISTICS]
        if figures[0] is not None:
            medians = (_shown(figure.median) for figure in figures if figure)
            table.add_row(TITLES[name], *medians, _range(figures[0]))
    return table


def _rate_table(spreads: Mapping[str, Spread]) -> Table:
    table = number_table("", "median", "lowest - highest")
    for title, (name, unit) in RATES.items():
        if (spread := spreads.get(name)) is not None:
            table.add_row(title, _shown(spread.median / unit), _range(spread, unit))
    return table


def _comparison_table(result: WorkloadResult) -> Table:
    """A target per column, and behind each but the first the first one's ratio to it."""
    first, *others = result.runs
    table = number_table("", first, *(head for label in others for head in (label, f"{first}/{label}")))
    ratios = {label: result.ratios(label) for label in others}
    spreads = {label: result.spreads(label) for label in result.runs}
    for title, (name, unit) in COMPARED.items():
        cells = [_cell(spreads[first].get(name), unit)]
        for label in others:
            cells += [_cell(spreads[label].get(name), unit), _ratio_cell(ratios[label].get(name))]
        if any(cells):
            table.add_row(title, *cells)
    return table


def _notes(result: WorkloadResult, label: str) -> Iterator[str]:
    """What the tables leave out: failures, the cache, who counted, what the client cost."""
    figures = result.figures(label)

    def total(name: str) -> float:
        return sum(of_run[name] or 0 for of_run in figures)

    if errors := result.errors(label):
        yield f"{len(errors)} of {total('num_requests'):,.0f} requests failed, the first with: {errors[0]}"
    if total("num_short"):
        yield f"{total('num_short'):,.0f} replies ended before the tokens asked for"
    yield _cache_note(figures, total("cached_tokens"), total("input_tokens"))
    if counts := sorted({r.counted_by for run in result.runs[label] for r in run.complete} - {"usage", "engine"}):
        yield f"output tokens counted by {', '.join(counts)}"
    cost = total("client_cpu_seconds")
    per_chunk = f", {cost / total('num_chunks') * 1e6:.0f} µs per chunk" if total("num_chunks") else ""
    yield f"client CPU: {100 * cost / total('wall_seconds'):.1f} % of a core{per_chunk}"


def _cache_note(figures: Sequence[Mapping[str, float | None]], num_cached: float, num_input: float) -> str:
    if any(of_run["cached_tokens"] is None for of_run in figures):
        return "prompt tokens from the prefix cache: the server does not tell"
    return f"prompt tokens from the prefix cache: {num_cached:,.0f} of {num_input:,.0f}"


def number_table(*heads: str) -> Table:
    """Columns of numbers to the right, the first to the left."""
    table = Table(box=None, show_header=bool(heads), pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table


def _cell(spread: Spread | None, unit: float) -> str:
    return _shown(spread.median / unit) if spread else ""


def _ratio_cell(spread: Spread | None) -> str:
    return f"{_shown(spread.median)} ({_range(spread)})" if spread else ""


def _range(spread: Spread, unit: float = 1) -> str:
    return f"{_shown(spread.low / unit)} - {_shown(spread.high / unit)}"


def _shown(value: float) -> str:
    """About three digits: 0.123, 4.65, 43.6, 868, 1,082."""
    digits = next((digits for limit, digits in ((0.995, 3), (9.995, 2), (99.95, 1)) if abs(value) < limit), 0)
    return f"{value:,.{digits}f}"
