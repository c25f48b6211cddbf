"""From `roseinfer serve` to the first token over HTTP, with Triton's cache of compiled kernels empty, and full."""

from __future__ import annotations

import os
import shlex
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cuda_figures import Figure
from benchmarks.cuda_models import make_model, write_checkpoint
from benchmarks.cuda_steps import Bench
from benchmarks.start import BODY, URL, measure

SERVE = 'exec {{python}} -m roseinfer serve "{{model}}" --port {{port}} --device cuda >"{log}" 2>&1'
SHOWN = 2000  # characters of the log of a server that failed
TIMEOUT = 300.0
CACHE = "TRITON_CACHE_DIR"


def start(bench: Bench) -> Iterator[Figure]:
    """By turns; one start before fills the page cache and the full kernel cache."""
    model = make_model(bench.sizes.decoder, "bf16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(model, folder / "model")
        full = folder / "kernels"
        seconds_to_token(checkpoint, full)
        times = [
            (seconds_to_token(checkpoint, folder / f"kernels-{i}"), seconds_to_token(checkpoint, full))
            for i in range(bench.rounds)
        ]
        size = (checkpoint / "model.safetensors").stat().st_size
    cold, warm = (list(column) for column in zip(*times, strict=True))
    yield _figure("kernels compiled before", warm, f"; {size / 1e9:.2f} GB of bf16 in the page cache", "<= 10 s")
    yield _figure("no kernel compiled before", cold, "", "<= 10 s")


def seconds_to_token(checkpoint: Path, kernel_cache: Path) -> float:
    log = checkpoint.parent / "server.log"
    command = f"sh -c {shlex.quote(SERVE.format(log=log))}"
    try:
        with variable(CACHE, str(kernel_cache)):
            return measure(command, URL, BODY, checkpoint, TIMEOUT).seconds
    except SystemExit as error:
        said = log.read_text("utf-8", "replace")[-SHOWN:] if log.exists() else ""
        raise RuntimeError(f"{error}\n{said}") from error


def _figure(what: str, times: list[float], note: str, target: str) -> Figure:
    spread = f"{min(times):.2f} - {max(times):.2f}"
    return Figure(f"serve to first token, {what}", statistics.median(times), "s", None, target, f"{spread}{note}")


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Of this process and those that it starts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
