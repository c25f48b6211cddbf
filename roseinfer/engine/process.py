"""An engine in a process of its own, which is watched, and started anew when it dies; no request is lost with it.

One thread of this process does all of it: it starts the engine, reads what it says, looks whether it gets on, and when
it is gone gives the requests that were with it to the next one (`engine/live_requests.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from roseinfer.core.errors import EngineError, RoseinferError
from roseinfer.core.messages import AddRequest, Command, EngineStats, StepOutput, TokenOutput
from roseinfer.core.python_process import fill_standard_files
from roseinfer.engine.child_process import ChildProcess
from roseinfer.engine.frames import (
    EngineEvent,
    LoadFailed,
    Loading,
    LoadModel,
    Ready,
    StepDone,
    Vocabulary,
    load_error,
)
from roseinfer.engine.host import OnExit, OnStep
from roseinfer.engine.live_requests import LiveRequests
from roseinfer.engine.memory_file import large_memory_file
from roseinfer.engine.model_info import ModelInfo
from roseinfer.engine.progress import ProgressCounter

logger = logging.getLogger(__name__)

MAIN = "roseinfer.engine.child"
RELOAD_FACTOR = 3  # by which a restart may be slower than the load before without any sign of life


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """When an engine counts as dead, and when its server gives up. Seconds."""

    hang_seconds: float = 8.0  # without any progress, be it a kernel's next piece of work or an idle engine's beat
    load_seconds: float = 120.0  # the same while the model is loaded, when a slow disk says nothing for long
    stale_seconds: float = 3.0  # after which the server says that it is not ready
    tick_seconds: float = 0.5
    max_deaths: int = 5  # within `window_seconds`
    window_seconds: float = 60.0
    start_again_seconds: float = 1.0  # behind a process that the system did not grant
    backoff: tuple[float, ...] = (0.0, 0.0, 0.25, 1.0)  # before the first, second, ... restart in a row
    row_seconds: float = 10.0  # that deaths in a row lie apart at most


class _DeadError(Exception):
    """The engine is gone; the message says of what."""


class EngineProcess:
    """`EngineHost` for a model. The engine starts to load at once; `wait_until_loaded` before anything else.

    `read_vocabulary` is asked once, when the first grammar comes. `on_progress` is called on the watching thread.
    """

    def __init__(
        self,
        load: LoadModel,
        read_vocabulary: Callable[[], Vocabulary],
        on_progress: Callable[[int, int], None] | None = None,
        *,
        main: str = MAIN,
        options: WatchOptions = WatchOptions(),
    ) -> None:
        self.num_restarts = 0
        self._load = load
        self._read_vocabulary = functools.lru_cache(maxsize=1)(read_vocabulary)
        self._on_progress = on_progress
        self._main = main
        self._options = options
        fill_standard_files()
        self._progress = ProgressCounter()
        self._cache = large_memory_file("roseinfer-kv") if load.prefix_cache else None
        self._first: Future[Ready] = Future()
        self._deaths: deque[float] = deque(maxlen=options.max_deaths)
        self._num_in_a_row = 0
        self._num_still_ticks = 0  # without progress
        self._load_seconds = options.load_seconds
        self._stats: EngineStats | None = None  # the last
        self._closing = threading.Event()
        self._started = threading.Event()
        self._on_step: OnStep = lambda step, stats: None
        self._on_exit: OnExit = lambda error: None
        self._lock = threading.RLock()  # guards what follows; nobody is called under it
        self._live = LiveRequests()
        self._own_outputs: list[TokenOutput] = []  # of requests that ended here, for the watching thread to hand over
        self._child: ChildProcess | None = None
        self._is_loaded = False  # that child
        # Not the caller's thread: Linux ends a child with the thread that started it.
        self._thread = threading.Thread(target=self._run, name="roseinfer-engine", daemon=True)
        self._thread.start()

    # -- the host's face ------------------------------------------------------------------------------------

    def wait_until_loaded(self) -> ModelInfo:
        """Raises what kept the engine from starting: ConfigError, CheckpointError, EngineError."""
        ready = self._first.result()
        self.vocab_size = ready.info.vocab_size
        self.max_model_len = ready.max_model_len
        self.max_running = ready.max_running
        return ready.info

    @property
    def pid(self) -> int | None:
        """Of the process that there is now."""
        child = self._child
        return child.pid if child else None

    @property
    def is_ready(self) -> bool:
        return self._is_loaded and self._num_still_ticks * self._options.tick_seconds < self._options.stale_seconds

    def stats(self) -> EngineStats:
        """Of an engine that has done nothing yet."""
        return self._first.result().stats

    def start(self, on_step: OnStep, on_exit: OnExit) -> None:
        self._on_step = on_step
        self._on_exit = on_exit
        self._started.set()

    def send(self, command: Command) -> None:
        with self._lock:
            if isinstance(command, AddRequest):
                self._live.add(command)
                self._send_all()
            elif (output := self._live.abort(command.request_id)) is not None:
                self._own_outputs.append(output)
            elif self._child is not None and self._is_loaded:
                self._child.send(command)

    def close(self) -> None:
        self._closing.set()
        self._started.set()
        with self._lock:
            if self._child is not None:
                self._child.kill()
        self._thread.join()

    # -- the watching thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        # The server's main thread handles these; the engine inherits this, and is never interrupted.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        error: BaseException | None = None
        try:
            while not self._closing.is_set():
                self._be_with_one_engine()
        except RoseinferError as caught:
            error = caught
        except BaseException as caught:
            logger.critical("the engine cannot be watched any more", exc_info=caught)
            error = caught
        self._progress.close()
        self._empty_cache()
        if self._cache is not None:
            self._cache.close()
        if self._first.done():
            self._started.wait()
            self._on_exit(error)
        else:
            self._first.set_exception(error or EngineError("the engine was closed while the model was loaded"))

    def _be_with_one_engine(self) -> None:
        """From its start to its death. Raises RoseinferError if there is to be no other one."""
        try:
            fds = (self._progress.fileno(), self._cache.fileno() if self._cache else None)
            child = ChildProcess(self._main, fds, self._read_vocabulary, self._on_unsendable)
        except OSError as error:
            self._bury(f"it cannot be started: {error}")
            self._closing.wait(self._options.start_again_seconds)
            return
        reason = ""
        try:
            self._take_up(child)
            self._load_model(child)
            self._started.wait()
            self._read_steps(child)
        except _DeadError as death:
            child.kill()
            reason = str(death)
        except EOFError:
            pass
        finally:
            status = self._put_down(child)
            if not child.was_killed_by_others:
                self._empty_cache()
        if not self._closing.is_set():
            self._bury(reason or f"it ended with {status}")

    def _take_up(self, child: ChildProcess) -> None:
        with self._lock:
            self._child = child
        if self._closing.is_set():
            raise EOFError

    def _put_down(self, child: ChildProcess) -> str:
        with self._lock:
            self._is_loaded = False
            self._child = None
        return child.end()

    def _load_model(self, child: ChildProcess) -> None:
        child.send(msgspec.structs.replace(self._load, is_restart=self.num_restarts > 0))
        start = time.monotonic()
        while True:
            match self._read(child, self._load_seconds):
                case Loading() as loading:
                    if self._on_progress is not None and not self._first.done():
                        self._on_progress(loading.num_loaded_bytes, loading.num_bytes)
                case LoadFailed() as failure:
                    raise _DeadError(failure.message) if self._first.done() else load_error(failure)
                case Ready() as ready:
                    self._go_on(ready)
                    # The next one finds the file where the first one left it, in memory.
                    patience = self._options.hang_seconds + RELOAD_FACTOR * (time.monotonic() - start)
                    self._load_seconds = min(self._options.load_seconds, patience)
                    return
                case event:
                    raise _DeadError(f"it said {type(event).__name__} while it was loading")

    def _go_on(self, ready: Ready) -> None:
        if not self._first.done():
            self._first.set_result(ready)
        elif _identity(ready.info) != _identity(self._first.result().info):
            raise EngineError(f"{ready.info.file} is another model now than when the server was started")
        else:
            logger.warning("the engine is back, %d requests go on", len(self._live))
        self._stats = ready.stats
        self._on_step(StepOutput([]), ready.stats)
        with self._lock:
            self._is_loaded = True
            self._send_all()

    def _read_steps(self, child: ChildProcess) -> None:
        while True:
            event = self._read(child, self._options.hang_seconds)
            if not isinstance(event, StepDone):
                raise _DeadError(f"it said {type(event).__name__} while it was running")
            with self._lock:
                outputs = self._live.accept(event.outputs)
                self._send_all()
            self._stats = event.stats
            self._on_step(StepOutput(outputs), event.stats)

    def _read(self, child: ChildProcess, patience: float) -> EngineEvent:
        """The next event. Raises EOFError when the engine is gone, _DeadError when it does not move or talks nonsense.

        Ticks are counted, not time: where this process is held up as well, nobody is to blame.
        """
        self._num_still_ticks = 0
        before = self._progress.value
        while self._num_still_ticks * self._options.tick_seconds < patience:
            self._hand_over_own()
            try:
                return child.read(self._options.tick_seconds)
            except TimeoutError:
                before, last = self._progress.value, before
                self._num_still_ticks = 0 if before != last else self._num_still_ticks + 1
            except ValueError as error:
                raise _DeadError(f"it cannot be understood: {error}") from None
        raise _DeadError(f"it has not moved for {patience:g} seconds")

    def _hand_over_own(self) -> None:
        if not self._own_outputs or not self._started.is_set():
            return
        with self._lock:
            outputs, self._own_outputs = self._own_outputs, []
        self._on_step(StepOutput(outputs), self._stats or self.stats())

    # -- death ----------------------------------------------------------------------------------------------

    def _bury(self, reason: str) -> None:
        """Raises EngineError if the engine died too often, or before it ever ran."""
        if not self._first.done():
            raise EngineError(f"the engine died while it loaded the model: {reason}")
        with self._lock:
            is_solved = self._live.has_suspect_alone
            self._own_outputs += self._live.on_death(reason)
            num_live = len(self._live)
        self._stats = self.stats()
        self._on_step(StepOutput([]), self._stats)
        self._hand_over_own()
        logger.error("the engine died: %s; it is started anew, %d requests wait for it", reason, num_live)
        self.num_restarts += 1
        if not is_solved:  # or whoever is to blame was alone with it, and is gone as well
            self._count_death(reason)

    def _count_death(self, reason: str) -> None:
        now, options = time.monotonic(), self._options
        is_in_a_row = bool(self._deaths) and now - self._deaths[-1] <= options.row_seconds
        self._num_in_a_row = self._num_in_a_row + 1 if is_in_a_row else 1
        self._deaths.append(now)
        num_deaths = sum(now - at <= options.window_seconds for at in self._deaths)
        if num_deaths >= options.max_deaths:
            within = f"{num_deaths} times within {options.window_seconds:g} seconds"
            raise EngineError(f"the engine died {within}, at last: {reason}")
        self._closing.wait(options.backoff[min(self._num_in_a_row, len(options.backoff)) - 1])

    # -- parts ----------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        """Whatever may be sent now. Under the lock."""
        if self._child is not None and self._is_loaded:
            for command in self._live.next_commands():
                self._child.send(command)

    def _empty_cache(self) -> None:
        """An engine that crashed or hung may have written anywhere, and where memory ran out it is needed."""
        if self._cache is not None:
            self._cache.truncate(0)

    def _on_unsendable(self, request_id: str, error: Exception) -> None:
        with self._lock:
            self._own_outputs += self._live.fail(request_id, f"the request cannot be sent to the engine: {error}")
            self._send_all()


def _identity(info: ModelInfo) -> ModelInfo:
    """All that answers depend on; the memory may be planned otherwise where the machine's has changed, and with it how
    long an answer may get.
    """
    return dataclasses.replace(info, memory={}, max_model_len=0)
