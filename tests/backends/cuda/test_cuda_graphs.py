"""When a step is run, captured and replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from roseinfer.backends.cuda.graphs import DecodeGraphs


class Recorder:
    """Stands in for a GPU's capture: says what happened, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def run(self, name: str) -> Callable[[], None]:
        return lambda: self.events.append(f"run {name}")

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        before = len(self.events)
        run()
        name = self.events.pop().removeprefix("run ")
        assert len(self.events) == before
        self.events.append(f"capture {name}")
        return lambda: self.events.append(f"replay {name}")


def test_a_step_is_captured_when_it_comes_again() -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(recorder.capture)
    for key in ("a", "a", "b", "a", "b"):
        graphs.run(key, recorder.run(key))
    assert recorder.events == ["run a", "capture a", "replay a", "run b", "replay a", "capture b", "replay b"]
    assert len(graphs) == 2


def test_there_are_only_so_many_graphs() -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(recorder.capture, max_graphs=2)
    for key in ("a", "a", "b", "b", "a", "c", "c", "a", "b"):
        graphs.run(key, recorder.run(key))
        assert len(graphs) <= 2
    assert recorder.events[-2:] == ["replay a", "run b"]  # b was not used the longest


def test_without_capture_every_step_runs() -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(None)
    for _ in range(3):
        graphs.run("a", recorder.run("a"))
    assert recorder.events == ["run a"] * 3
    assert len(graphs) == 0


def test_cleared_graphs_are_captured_anew() -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(recorder.capture)
    for _ in range(2):
        graphs.run("a", recorder.run("a"))
    graphs.clear()
    graphs.run("a", recorder.run("a"))
    assert recorder.events[-1] == "run a"


def test_a_step_that_cannot_be_captured_goes_on_as_it_did(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("no memory")

    recorder = Recorder()
    graphs = DecodeGraphs(refuse)
    for _ in range(4):
        graphs.run("a", recorder.run("a"))
    assert recorder.events == ["run a"] * 4
    assert caplog.text.count("not captured in a CUDA graph: no memory") == 1


def test_a_first_run_that_failed_is_a_first_run_again() -> None:
    recorder = Recorder()
    graphs = DecodeGraphs(recorder.capture)

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        graphs.run("a", fail)
    graphs.run("a", recorder.run("a"))
    assert recorder.events == ["run a"]
