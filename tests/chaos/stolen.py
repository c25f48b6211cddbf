"""How much of the CPU time that was wanted other guests of the machine's host had meanwhile."""

from __future__ import annotations

from pathlib import Path

USER, NICE, SYSTEM, STOLEN = 0, 1, 2, 7  # columns of the first line, see proc_stat(5)


class StolenTime:
    """From its making on."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._start = self._read()

    def share(self) -> float:
        """Stolen ÷ (stolen + used); 0 where nobody counts it."""
        columns = [now - then for now, then in zip(self._read(), self._start, strict=True)]
        used = columns[USER] + columns[NICE] + columns[SYSTEM]
        stolen = columns[STOLEN]
        return stolen / (used + stolen) if stolen > 0 else 0.0

    def _read(self) -> list[int]:
        try:
            line = self._path.read_text().partition("\n")[0]
        except OSError:
            return [0] * (STOLEN + 1)
        return [int(column) for column in line.split()[1 : STOLEN + 2]]
