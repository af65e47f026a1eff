"""`runner_service`: a runner in worker processes, called as if it were here.

Guarantees      1. nothing is started before `start`, `with` or `async with`;
                2. `stop` answers what was accepted, and leaves no process, thread, socket
                   or file behind; so does a `start` that fails;
                3. a fork's child calls the parent's workers as any client does, and never
                   stops them.
"""

from __future__ import annotations

import asyncio
import atexit
import enum
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from .._native.calls import Handle, ItemHandle
from ..errors import RunnerClosed
from ..options import BatchOptions
from ..statistics import Statistics
from .endpoints import checked, checked_seconds
from .running import ForkedService, RunningService

__all__ = ["ItemService", "RunnerService", "runner_service"]


def runner_service(
    runner: Any,
    *,
    workers: int = 1,
    endpoint: str | None = None,
    keys: object = None,
    start_timeout_s: float = 60,
) -> RunnerService | ItemService:
    """Describes a service: the runner in worker processes of its own, behind an endpoint.

    Nothing is started before `start`, ``with`` or ``async with``; a call before that is
    `RunnerClosed`. The handle has the runner's calls, from any thread and event loop.

    Args:
        runner: a `Runner` or `SimpleRunner`. What stands in its ``__dict__`` is pickled and
            shipped to the workers; `_setup` then runs in each of them.
        workers: processes to keep running.
        endpoint: ``ipc://PATH`` or ``tcp://127.0.0.1:PORT`` (0: any free port); None: a socket in a
            private directory. Over tcp no pickle is accepted, so lists and objects are refused.
        keys: reserved: tcp beyond loopback comes with a later version. Must be None.
        start_timeout_s: seconds within which each worker must have finished `_setup`.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """
    if not isinstance(runner, ItemHandle) or not hasattr(runner, "_hook"):
        raise TypeError(f"runner must be a Runner or a SimpleRunner, got {runner!r}")
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be an int, got {workers!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if keys is not None:
        raise ValueError("keys are not implemented yet: leave keys=None, and use ipc or tcp on loopback")
    start_timeout_s = checked_seconds("start_timeout_s", start_timeout_s)
    if endpoint is not None:
        endpoint = checked(endpoint)
    kind = RunnerService if isinstance(runner, Handle) else ItemService
    return kind(runner, workers, endpoint, start_timeout_s)


# For a thread that is inside `stop` when the interpreter ends.
_EXIT_PATIENCE_S = 1.0


class _State(enum.Enum):
    DESCRIBED = "is not started: call start(), or use it in a with block"
    STARTING = "is still starting"
    RUNNING = "runs"
    STOPPING = "is stopping"
    STOPPED = "was stopped"
    FORKED = "runs in another process"


class _Service:
    """What RunnerService and ItemService share."""

    _bind: Callable[[Any], None]

    def __init__(self, runner: Any, workers: int, endpoint: str | None, start_timeout_s: float) -> None:
        self._runner = runner
        self._options: BatchOptions = runner.options
        self._workers = workers
        self._wanted = endpoint
        self._start_timeout_s = start_timeout_s
        self._state = _State.DESCRIBED
        self._lock = threading.Lock()  # between start and stop
        self._running: RunningService | ForkedService | None = None
        self._abandoned: Future[None] | None = None  # the start under way

    # ---- what it is ----------------------------------------------------------------

    @property
    def name(self) -> str:
        """The runner's name, which `connect` asks for."""
        name: str = self._runner.name
        return name

    @property
    def endpoint(self) -> str:
        """Where it listens, with its real port. Raises RunnerClosed unless it runs."""
        if self._running is None:
            raise RunnerClosed(self._closed_text())
        return self._running.endpoint

    @property
    def options(self) -> BatchOptions:
        """The options; assigning new ones takes effect from the next batch on.

        ``static_args`` and ``concurrency`` are part of the workers and cannot be changed.
        """
        return self._options

    @options.setter
    def options(self, options: BatchOptions) -> None:
        if not isinstance(options, BatchOptions):
            raise TypeError(f"options must be BatchOptions, got {options!r}")
        for field in ("static_args", "concurrency"):
            old, new = getattr(self._options, field), getattr(options, field)
            if old != new:
                raise ValueError(f"{field} of a service cannot be changed: {old!r} to {new!r}")
        self._options = options
        running = self._running
        if running is not None:
            running.set_options(options)

    def statistics(self) -> Statistics:
        """The numbers of the service, all its callers together. RunnerClosed unless it runs."""
        running = self._running
        if running is None:
            raise RunnerClosed(self._closed_text())
        return running.statistics()

    def _check_budget(self) -> bool:
        return self._running is None or self._running.check_budget()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.name!r}, {self._workers} workers, {self._state.name.lower()}>"
        )

    def _closed_text(self) -> str:
        return f"the service of {self.name!r} {self._state.value}"

    def _start(self) -> None:
        # Called by the first call of an unbound handle.
        raise RunnerClosed(self._closed_text())

    # ---- life ------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts the workers and waits until all of them are ready. Blocks.

        Raises:
            TypeError: an attribute of the runner cannot be pickled; the message names it.
            RunnerError: a `_setup` raised; with the worker's traceback.
            WorkerDied: a worker died before it was ready.
            DeadlineExceeded: a worker was not ready within `start_timeout_s`.
            OSError: the endpoint is in use.
        """
        with self._lock:
            if self._state is _State.RUNNING:
                return self
            if self._state is _State.FORKED:
                raise RunnerClosed(self._closed_text())
            self._state = _State.STARTING
            _services.add(self)  # now: a fork's child must know what there is already
            try:
                self._running = running = RunningService(
                    self._runner, self._options, self._workers, self._wanted, self._start_timeout_s
                )
                self._abandoned = running.started
                running.begin()
                running.wait()
            except BaseException:
                self._state = _State.STOPPED
                self._running = None
                _services.discard(self)
                raise
            finally:
                self._abandoned = None
            self._state = _State.RUNNING
            self._bind(running.engine)
        return self

    def stop(self, timeout_s: float | None = None) -> None:
        """Refuses new calls, answers what was accepted, then ends the workers. Blocks.

        A second stop does nothing; a stopped service may be started again. In a fork's
        child it only closes the child's connection.

        Args:
            timeout_s: seconds to wait for the answers; calls that have none by then fail
                with `RunnerClosed`, and their workers are killed. None: as long as it takes.
                If another thread is inside `stop`, the shorter of the two holds.
        """
        if not self._lock.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0)):
            self._cut_short()
            self._lock.acquire()
        try:
            running = self._running
            if running is None or self._state not in (_State.RUNNING, _State.FORKED):
                return
            self._state = _State.STOPPING
            self._bind(None)
            try:
                running.stop(timeout_s)
            finally:
                self._running = None
                self._state = _State.STOPPED
                _services.discard(self)
        finally:
            self._lock.release()

    def _cut_short(self) -> None:
        """Ends the patience of a thread that is inside `stop`."""
        running = self._running
        if running is not None and self._state is _State.STOPPING:
            running.stop(0)

    def _stop_at_exit(self) -> None:
        if self._lock.acquire(timeout=_EXIT_PATIENCE_S):
            self._lock.release()
            self.stop(timeout_s=0)
            return
        # A thread is inside `stop`, and may wait for a batch that never ends.
        running = self._running
        if running is not None:
            running.stop(0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            abandoned = self._abandoned
            if abandoned is not None:
                with suppress(InvalidStateError):
                    abandoned.set_exception(RunnerClosed("the start was cancelled"))
            with suppress(Exception):
                await starting
                await asyncio.to_thread(self.stop)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    # ---- forks -------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: what ran belongs to the parent, and stays reachable as a client."""
        self._lock = threading.Lock()
        running = self._running
        if running is None:
            self._state = _State.STOPPED
            return
        _of_parents.append(running)
        self._running = running.as_client()
        self._state = _State.FORKED
        self._bind(self._running.engine)


class RunnerService(_Service, Handle):
    """A runner in worker processes: `run`, `run_batch` and their coroutines, as a `Runner` has them.

    Made by `runner_service`. Any thread and any event loop may call; all calls of all
    processes share one queue. In a fork's child it is a client of the parent's service.
    """


class ItemService(_Service, ItemHandle):
    """A SimpleRunner in worker processes: `run` and `async_run`."""


# ---- the end of the interpreter, and forks ----------------------------------------------

# Never touched again, not even freed: its threads and sockets do not exist in this process.
_of_parents: list[RunningService | ForkedService] = []

# What runs or starts. Not weak: a service whose handle was dropped has workers and files all the same.
_services: set[_Service] = set()


def _stop_all() -> None:
    for service in list(_services):
        service._stop_at_exit()


def _after_fork() -> None:
    for service in list(_services):
        service._after_fork()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork)
