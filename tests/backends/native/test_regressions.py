"""Faults that were found once, each with what it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from roseinfer.backends import Program, ProgramOptions, compile_program
from roseinfer.backends.native import _native
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.batch import ForwardInputs
from roseinfer.graph import AttentionSpec, Graph

VOCAB_SIZE, WIDTH = 8, 32
HUGE_TOKEN = 7
ROOT = Path(__file__).resolve().parents[3]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")


def attention_program(isa: str = "auto", vocab_size: int = VOCAB_SIZE, width: int = WIDTH) -> Program:
    """Logits of what one layer of attention alone gives, no residual beside it. The keys of HUGE_TOKEN are beyond
    float16.
    """
    graph = Graph()
    x = graph.embedding("embedding", vocab_size, width)
    q, k, v = (graph.linear(x, name, width) for name in "qkv")
    a = graph.attention(q, k, v, AttentionSpec(0, 1, 1, width, 0.25))
    graph.logits(graph.take_logit_rows(a), "output", vocab_size)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in graph.weights.items()}
    values["embedding.weight"][:, 0] = np.arange(vocab_size) == HUGE_TOKEN
    values["k.weight"][:, 0] = 1e6
    weights = {name: Tensor.from_numpy(name, value) for name, value in values.items()}
    options = ProgramOptions(num_blocks=8, max_batch_tokens=64, max_logit_rows=64, num_threads=2, isa=isa)
    return compile_program("native", graph, weights, options)


def run(program: Program, *rows: list[int]) -> list[np.ndarray]:
    """All logits of each row; row i has block i."""
    lengths = [len(row) for row in rows]
    program.forward(
        ForwardInputs(
            token_ids=np.concatenate(rows).astype(np.int32),
            positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            row_offsets=np.cumsum([0, *lengths]).astype(np.int32),
            block_tables=np.arange(len(rows), dtype=np.int32)[:, None],
            logit_rows=np.arange(sum(lengths), dtype=np.int32),
        )
    )
    return np.split(program.logits(), np.cumsum(lengths)[:-1])


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    imports = "from tests.backends.native.test_regressions import *\nimport threading, time\n"
    command = [sys.executable, "-W", "ignore", "-c", imports + script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_a_key_beyond_float16_is_seen_in_the_logits(isa):
    """The exponential made e^-87 of a NaN, and attention the plain mean of the values, which looked sound."""
    program = attention_program(isa)
    fine, broken = [0, 1, 2, 3, 4, 5] * 2, [0, 1, HUGE_TOKEN, 3]
    together = run(program, fine, broken, fine)
    np.testing.assert_array_equal(together[0], run(program, fine)[0])
    np.testing.assert_array_equal(together[2], together[0])
    assert np.isfinite(together[0]).all()
    assert np.isfinite(together[1][:2]).all()
    assert np.isnan(together[1][2:]).all()


def test_the_interpreter_ends_while_a_thread_computes():
    """The thread came back from C++ to an interpreter that was gone, which aborted the process."""
    done = run_script(
        "program = attention_program()\n"
        "def compute():\n"
        "    while True: run(program, [0] * 16, [1] * 16, [2] * 16)\n"
        "threading.Thread(target=compute, daemon=True).start()\n"
        "time.sleep(0.3)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


LIMIT_MEMORY = (
    "import resource\n"
    "def limit(more):\n"
    "    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
    "    resource.setrlimit(resource.RLIMIT_AS, (size + more if more else -1, -1))\n"
)


@linux_only
def test_more_threads_than_the_system_gives():
    """Threads that ran already were destroyed without being joined, which aborted the process."""
    done = run_script(
        LIMIT_MEMORY + "from roseinfer.backends.native.compiler import ConfigError, _thread_pool\n"
        "limit(200 << 20)\n"
        "try: _thread_pool(1000)\n"
        "except ConfigError as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1000 threads cannot be started")


@linux_only
def test_a_worker_without_memory_fails_the_call_only():
    """An exception on a worker ended the process; one on the caller left workers with a context that was gone."""
    done = run_script(
        LIMIT_MEMORY + "program = attention_program(vocab_size=1 << 21, width=1)._native\n"
        "i32, f32 = (lambda *v: np.array(v, np.int32)), (lambda *v: np.array(v, np.float32))\n"
        "def sample():\n"
        "    return program.sample(i32(0, 1, 2), f32(1, 1, 1), i32(0, 0, 0), f32(1, 1, 1), f32(0, 0, 0),\n"
        "        np.arange(3, dtype=np.uint64), i32(0, 0, 0), np.arange(3), i32(-1, -1, -1))[0]\n"
        "program.forward(i32(0, 1, 2), i32(0, 1, 2), i32(0, 3), i32(0)[None], i32(0, 1, 2))\n"
        "limit(1 << 20)\n"
        "try: sample()\n"
        "except MemoryError: print('no memory')\n"
        "limit(0)\n"
        "assert (sample() >= 0).all()\n"
    )
    assert (done.returncode, done.stdout) == (0, "no memory\n"), done.stderr
