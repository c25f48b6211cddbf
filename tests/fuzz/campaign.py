"""Many mutants of one format: shared out to children, which are watched, replaced when they die, and added up."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.fuzz.board import FAULTY, PENDING, Board
from tests.fuzz.child import Job, keep
from tests.fuzz.judge import OUTCOMES
from tests.fuzz.mutant import find_format

BATCH = 2500
MAX_MEMORY = 4 << 30
START_SECONDS = 60.0
STUCK_SECONDS = 20.0  # of real time; slow ones that come to an end are found by the child
_POLL_SECONDS = 0.05


@dataclass
class Fault:
    index: int
    kind: str  # "crash", "hang", "side effect" or "error"
    reason: str
    folder: Path  # the mutant and its reason


@dataclass
class Result:
    format: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return self.outcomes.total() + len(self.faults)

    def num_faults(self, kind: str) -> int:
        return sum(fault.kind == kind for fault in self.faults)


def run(
    format_name: str,
    count: int,
    seed: int,
    *,
    num_children: int,
    faults: Path,
    start: int = 0,
    max_memory: int | None = MAX_MEMORY,
) -> Result:
    """Receives mutants `start` to `start + count`; faulty ones are put under `faults`."""
    with _scratch() as scratch:
        begin = time.perf_counter()
        bases = scratch / "bases"
        bases.write_bytes(pickle.dumps(find_format(format_name).make_bases()))
        campaign = _Campaign(Result(format_name), seed, scratch, bases, faults, max_memory)
        size = min(BATCH, -(-count // num_children))
        stop = start + count
        campaign.run([(first, min(first + size, stop)) for first in range(start, stop, size)], num_children)
        campaign.result.seconds = time.perf_counter() - begin
        return campaign.result


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one: a mutant is a file that lives for a millisecond."""
    memory = Path("/dev/shm")
    is_usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if is_usable else None) as folder:
        yield Path(folder)


class _Campaign:
    def __init__(
        self, result: Result, seed: int, scratch: Path, bases: Path, faults: Path, max_memory: int | None
    ) -> None:
        self.result = result
        self._seed = seed
        self._scratch = scratch
        self._bases = bases
        self._faults = faults
        self._max_memory = max_memory
        self._num_children = 0

    def run(self, ranges: list[tuple[int, int]], num_children: int) -> None:
        waiting = ranges[::-1]
        running: list[_Child] = []
        try:
            while waiting or running:
                while waiting and len(running) < num_children:
                    running.append(self._start(*waiting.pop()))
                time.sleep(_POLL_SECONDS)
                for child in [child for child in running if child.is_over()]:
                    running.remove(child)
                    waiting += self._finish(child)
        finally:
            for child in running:
                child.kill()

    def _start(self, start: int, stop: int) -> _Child:
        self._num_children += 1
        folder = self._scratch / str(self._num_children)
        folder.mkdir()
        job = Job(self.result.format, self._seed, start, stop, str(folder), str(self._bases), self._max_memory)
        return _Child(job)

    def _finish(self, child: _Child) -> list[tuple[int, int]]:
        """Takes over what the child has found; what is left for another one if it died."""
        current, stop = child.board.current, child.job.stop
        for code in child.board.codes():
            if code not in (PENDING, FAULTY):
                self.result.outcomes[OUTCOMES[code - 2]] += 1
        if current < stop:
            child.blame(current)
        self._collect(child.folder / "faults")
        shutil.rmtree(child.folder)
        return [(current + 1, stop)] if current + 1 < stop else []

    def _collect(self, folder: Path) -> None:
        for kept in sorted(folder.iterdir()) if folder.exists() else []:
            target = self._faults / f"{self.result.format}-{self._seed}-{kept.name}"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(kept, target)
            reason = (kept / "reason.txt").read_text()
            self.result.faults.append(Fault(int(kept.name), _kind(reason), reason, target))


def _kind(reason: str) -> str:
    last = reason.strip().splitlines()[-1]
    if reason.startswith("crash"):
        return "crash"
    if "hang:" in last or reason.startswith("hang"):
        return "hang"
    return "side effect" if "SideEffect" in last else "error"


class _Child:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = Path(job.folder)
        self.board = Board(self.folder / "board", job.start, job.stop - job.start)
        self._is_stuck = False
        self._index = -1
        self._since = time.monotonic()
        job.save(self.folder / "job.json")
        with (self.folder / "stderr").open("wb") as stderr:
            self._process = self._popen(stderr)

    def _popen(self, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.child", str(self.folder / "job.json")]
        settings = {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
        environment = {**os.environ, **settings}
        return subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr, stdin=subprocess.DEVNULL)

    def is_over(self) -> bool:
        """Kills it if it is stuck."""
        if self._process.poll() is not None:
            return True
        index, now = self.board.current, time.monotonic()
        if index != self._index:
            self._index, self._since = index, now
        limit = START_SECONDS if index == self.job.start else STUCK_SECONDS
        if now - self._since > limit:
            self._is_stuck = True
            self.kill()
        return self._is_stuck

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def blame(self, index: int) -> None:
        """The mutant in its folder for its end."""
        code = self._process.returncode
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        tail = (self.folder / "stderr").read_text(errors="replace")[-12000:]
        kind = f"hang: still busy after {STUCK_SECONDS:.0f} s" if self._is_stuck else f"crash: {ended}"
        (self.folder / "mutant").mkdir(exist_ok=True)
        keep(self.folder, index, f"{kind}\n{tail}")
