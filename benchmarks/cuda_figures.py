"""What the CUDA benchmark says: figures, each with its limit's share and the target, as lines and as JSON."""

from __future__ import annotations

from dataclasses import dataclass

HEADER = f"{'':<64}{'value':>11} {'unit':<9}{'of limit':>8}  {'target':<9}"


@dataclass(frozen=True)
class Figure:
    """`share`: how much of the hardware's limit is reached, 1 = all of it; None where there is no limit."""

    name: str
    value: float
    unit: str
    share: float | None = None
    target: str = ""
    note: str = ""

    def row(self) -> str:
        share = "" if self.share is None else f"{self.share:.1%}"
        return (
            f"{self.name:<64}{_number(self.value):>11} {self.unit:<9}{share:>8}  {self.target:<9}{self.note}".rstrip()
        )


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
