"""Receives a range of mutants under limits; `python -m tests.fuzz.child JOB`, with JOB as `Job` writes it."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import pickle
import pkgutil
import resource
import shutil
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import roseinfer
from tests.fuzz.board import FAULTY, Board
from tests.fuzz.guard import Guard
from tests.fuzz.judge import OUTCOMES
from tests.fuzz.mutant import Format, Mutant, find_format, rng_of

MAX_SECONDS = 2.0
MAX_FILE_BYTES = 64 << 20
SECONDS_PER_MUTANT = 0.2  # of the whole range's CPU time
_USED_PARTS = ("core", "quant", "checkpoints", "graph", "models", "backends.native", "text")
_USED_LIBRARIES = ("encodings", "html", "jinja2")


@dataclass(frozen=True)
class Job:
    """Mutants `start` to `stop` of a format. `folder` holds what the child writes, `bases` what mutants are made of."""

    format: str
    seed: int
    start: int
    stop: int
    folder: str
    bases: str
    max_memory: int | None  # of address space, in bytes

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Job:
        return Job(**json.loads(path.read_text()))


def main() -> None:
    job = Job.load(Path(sys.argv[1]))
    faulthandler.enable()
    folder = Path(job.folder)
    module = find_format(job.format)
    bases = pickle.loads(Path(job.bases).read_bytes())
    board = Board(folder / "board", job.start, job.stop - job.start)
    (folder / "mutant").mkdir()
    _import_everything()
    _set_limits(job)
    guard = Guard(folder / "mutant", Path(roseinfer.__file__).parent)
    for sound in module.sound(bases):  # what is imported or cached by need, is so afterwards
        _receive(module, sound, folder, job, index=-1)
    for index in range(job.start, job.stop):
        board.current = index
        board.mark(index, _code(module, bases, job, index, folder, guard))
    board.current = job.stop


def _import_everything() -> None:
    for name in (*(f"{roseinfer.__name__}.{part}" for part in _USED_PARTS), *_USED_LIBRARIES):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            with contextlib.suppress(ImportError):  # of other systems' encodings
                importlib.import_module(module.name)


def _set_limits(job: Job) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CPU: int(60 + SECONDS_PER_MUTANT * (job.stop - job.start)),
    }
    if job.max_memory is not None:
        limits[resource.RLIMIT_AS] = job.max_memory
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _code(module: Format, bases: Any, job: Job, index: int, folder: Path, guard: Guard) -> int:
    """What the board says of a mutant. A faulty one is kept, with the reason."""
    mutant = module.make(bases, rng_of(job.format, job.seed, index))
    try:
        return OUTCOMES.index(_timed(module, mutant, folder, job, index, guard)) + 2
    except KeyboardInterrupt:
        raise
    except BaseException:
        keep(folder, index, traceback.format_exc())
        return FAULTY


def _timed(module: Format, mutant: Mutant, folder: Path, job: Job, index: int, guard: Guard) -> str:
    """By the clock of the CPU: the machine may have other things to do. Who waits for ever is found by the parent."""
    begin = time.process_time()
    outcome = _receive(module, mutant, folder, job, index, guard)
    seconds = time.process_time() - begin
    assert seconds < MAX_SECONDS, f"hang: took {seconds:.1f} s"
    return outcome


def _receive(module: Format, mutant: Mutant, folder: Path, job: Job, index: int, guard: Guard | None = None) -> str:
    path = mutant.write(folder / "mutant")
    rng = rng_of(f"receive {job.format}", job.seed, index)
    with guard.watching() if guard else contextlib.nullcontext():
        return module.receive(path, rng)


def keep(folder: Path, index: int, reason: str) -> None:
    """Copies the mutant that lies in the folder beside it."""
    kept = folder / "faults" / str(index)
    shutil.copytree(folder / "mutant", kept)
    (kept / "reason.txt").write_text(reason)


if __name__ == "__main__":
    main()
