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
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from .._native.calls import Call, Handle, ItemHandle
from .._native.scheduler import Scheduler
from ..errors import DeadlineExceeded, RunnerClosed
from ..options import BatchOptions
from ..statistics import Statistics
from .client import ClientEngine, Link
from .dispatcher import Dispatcher, Hooks
from .endpoints import PrivateDirectory, allows_pickle, checked
from .failures import error_of
from .ledger import Entry, Part
from .outcomes import Outcomes, Outgoing, prepare
from .recipe import CallSignature, Plan, described, pickled, signature_of
from .supervisor import Death, Supervisor, WorkerPlan
from .wire import Code, Failure

__all__ = ["ItemService", "RunnerService", "runner_service"]

_NS_PER_MS = 1_000_000


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
    if not start_timeout_s > 0:
        raise ValueError(f"start_timeout_s must be above 0, got {start_timeout_s!r}")
    if endpoint is not None:
        endpoint = checked(endpoint)
    kind = RunnerService if isinstance(runner, Handle) else ItemService
    return kind(runner, workers, endpoint, float(start_timeout_s))


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
        self._running: _Running | None = None
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
        """The numbers of the service; RunnerClosed unless it runs in this process."""
        running = self._running
        if running is None or self._state is _State.FORKED:
            raise RunnerClosed(self._closed_text())
        return running.statistics()

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
        """
        with self._lock:
            if self._state is _State.RUNNING:
                return self
            if self._state is _State.FORKED:
                raise RunnerClosed(self._closed_text())
            self._state = _State.STARTING
            try:
                self._running = _Running(
                    self._runner, self._options, self._workers, self._wanted, self._start_timeout_s
                )
                self._abandoned = self._running.started
                self._running.started.result()
            except BaseException:
                self._state = _State.STOPPED
                self._abandoned = None
                running, self._running = self._running, None
                if running is not None:
                    running.abort()
                raise
            self._abandoned = None
            self._state = _State.RUNNING
            _services.add(self)
            self._bind(self._running.engine)
        return self

    def stop(self, timeout_s: float | None = None) -> None:
        """Refuses new calls, answers what was accepted, then ends the workers. Blocks.

        A second stop does nothing; a stopped service may be started again. In a fork's
        child it only closes the child's connection.

        Args:
            timeout_s: seconds to wait for the answers; calls that have none by then fail
                with `RunnerClosed`, and their workers are killed. None: as long as it takes.
        """
        with self._lock:
            running = self._running
            if self._state is _State.FORKED:
                self._leave_fork()
            if self._state is not _State.RUNNING or running is None:
                return
            self._state = _State.STOPPING
            self._bind(None)
            try:
                running.stop(timeout_s)
            finally:
                self._running = None
                self._state = _State.STOPPED
                _services.discard(self)

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
        running.let_go()
        self._state = _State.FORKED
        self._bind(running.client_engine())

    def _leave_fork(self) -> None:
        self._bind(None)
        self._state = _State.STOPPED
        self._running = None


class RunnerService(_Service, Handle):
    """A runner in worker processes: `run`, `run_batch` and their coroutines, as a `Runner` has them.

    Made by `runner_service`. Any thread and any event loop may call; all calls of all
    processes share one queue. In a fork's child it is a client of the parent's service.
    """


class ItemService(_Service, ItemHandle):
    """A SimpleRunner in worker processes: `run` and `async_run`."""


class _Running(Hooks):
    """Everything that exists between a start and its stop."""

    def __init__(
        self, runner: Any, options: BatchOptions, workers: int, endpoint: str | None, start_timeout_s: float
    ) -> None:
        self.started: Future[None] = Future()
        self._name = runner.name
        self._workers = workers
        self._ready: set[str] = set()
        self._signature = signature_of(runner)
        self._description = described(runner)
        recipe = pickled(runner)
        self._directory = PrivateDirectory() if endpoint is None else None
        self._dispatcher = Dispatcher(
            runner.name, self._description, _scheduler(options, batches=isinstance(runner, Handle)), self,
            max_queue_rows=options.max_queue_rows, run_timeout_ms=options.run_timeout_ms,
        )  # fmt: skip
        try:
            self.endpoint = self._dispatcher.bind(
                self._directory.endpoint if self._directory else str(endpoint)
            )
        except BaseException:
            self._dispatcher.discard()
            if self._directory is not None:
                self._directory.remove()
            raise
        allow_pickle = allows_pickle(self.endpoint)
        self._outcomes = Outcomes(self._signature, allow_pickle=allow_pickle)
        self.engine = LocalEngine(self._dispatcher, self._signature, self._outcomes, options, allow_pickle)
        plan = WorkerPlan(recipe, self.endpoint, allow_pickle, options.concurrency, start_timeout_s)
        self._supervisor = Supervisor(plan, workers, self._on_death)
        self._dispatcher.start()
        self._supervisor.start()

    # ---- while it runs -------------------------------------------------------------

    def set_options(self, options: BatchOptions) -> None:
        self.engine.max_latency_ms = options.max_latency_ms
        self._dispatcher.set_options(
            scheduler_options(options), options.max_queue_rows, options.run_timeout_ms
        )

    def statistics(self) -> Statistics:
        return Statistics.from_numbers(_in_ms(self._dispatcher.statistics()))

    # In the dispatcher's thread:

    def worker_ready(self, token: str) -> None:
        self._supervisor.ready(token)
        self._ready.add(token)
        if len(self._ready) >= self._workers:
            with suppress(InvalidStateError):
                self.started.set_result(None)
        self._dispatcher.fail_calls(None)

    def kill_worker(self, token: str, why: str) -> None:
        self._supervisor.kill(token, why)

    def settle_turn(self) -> None:
        self._outcomes.settle()

    # In the supervisor's thread:

    def _on_death(self, death: Death) -> None:
        self._ready.discard(death.token)
        if not self.started.done():
            with suppress(InvalidStateError):
                self.started.set_exception(_start_error(death))
        self._dispatcher.worker_died(death.token, death.failure)
        if death.setup is not None and not self._ready:
            # Nobody is there, and nobody may come: an error now is better than none.
            self._dispatcher.fail_calls(death.setup)

    # ---- its end ---------------------------------------------------------------------

    def stop(self, timeout_s: float | None) -> None:
        late = f"the service was stopped, and the call had no answer within {timeout_s} s"
        try:
            if self._dispatcher.drain(timeout_s):
                self._supervisor.retire()
                self._dispatcher.dismiss_workers()
                self._supervisor.join()
        finally:
            # Whatever happened above, an interrupt too: nothing stays.
            self._end(late)

    def abort(self) -> None:
        self._end("the service did not start")

    def _end(self, why: str) -> None:
        try:
            self._supervisor.retire(0)
            self._supervisor.join()
        finally:
            self._dispatcher.end(Failure(0, Code.CLOSED, why))
            if self._directory is not None:
                self._directory.remove()

    # ---- forks -----------------------------------------------------------------------

    def let_go(self) -> None:
        for fd in self._supervisor.lifelines():
            with suppress(OSError):
                os.close(fd)

    def client_engine(self) -> ClientEngine:
        allow_pickle = allows_pickle(self.endpoint)
        plan = Plan.read(self._description, allow_pickle=allow_pickle)
        link = Link(self.endpoint, self._name, timeout_s=5.0)
        return ClientEngine(link, self._signature, plan.options, allow_pickle)


class LocalEngine:
    """The engine of the process that owns the dispatcher: calls go straight into its queue."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        signature: CallSignature,
        outcomes: Outcomes,
        options: BatchOptions,
        allow_pickle: bool,
    ) -> None:
        self.max_latency_ms = options.max_latency_ms
        self._dispatcher = dispatcher
        self._signature = signature
        self._outcomes = outcomes
        self._allow_pickle = allow_pickle

    def submit(self, call: Call) -> None:
        out = prepare(self._signature, call, allow_pickle=self._allow_pickle)
        entry = Entry(_LocalOrigin(self._outcomes, out), out.rows, out.key, out.buffers, call.deadline_ns)
        call.data = entry
        if not self._dispatcher.submit(entry):
            raise RunnerClosed("the service was stopped: no new calls are taken")

    def assist(self, call: Call) -> int:
        # The caller blocks now: no end of a loop's turn will come to send its call.
        self._dispatcher.flush()
        return -1

    def cancel(self, call: Call) -> None:
        self._dispatcher.cancel(call.data)


class _LocalOrigin:
    """A call of this process. All of them are one client."""

    __slots__ = ("_out", "_outcomes")

    client = 0

    def __init__(self, outcomes: Outcomes, out: Outgoing) -> None:
        self._outcomes = outcomes
        self._out = out

    def answer(self, parts: list[Part]) -> None:
        self._outcomes.answer(self._out, parts)

    def fail(self, failure: Failure) -> None:
        self._outcomes.fail(self._out, failure)


def _in_ms(numbers: dict[str, Any]) -> dict[str, Any]:
    """The scheduler's numbers by the names and units of `Statistics`."""
    policy = {
        name.removesuffix("_ns") + "_ms" if name.endswith("_ns") else name: value / _NS_PER_MS
        if name.endswith("_ns")
        else value
        for name, value in numbers["policy"].items()
    }
    policy["calibrated"] = bool(policy["calibrated"])
    return {**numbers, "release_reasons": numbers["released"], "policy": policy}


def _start_error(death: Death) -> Exception:
    if death.setup is not None:
        return error_of(death.setup, allow_pickle=True)
    error = error_of(death.failure, allow_pickle=True)
    if "start_timeout_s" in str(error):
        return DeadlineExceeded(str(error))
    return error


def scheduler_options(options: BatchOptions) -> dict[str, Any]:
    """The scheduler's own words for the options."""
    return {
        "max_batch_rows": options.max_batch_size,
        "max_queue_rows": options.max_queue_rows,
        "isolate_errors": options.isolate_errors,
        "objective": options.objective,
        "max_wait_ns": None if options.max_wait_ms is None else int(options.max_wait_ms * _NS_PER_MS),
        "allowed_rows": tuple(options.allowed_batch_sizes or ()),
    }


def _scheduler(options: BatchOptions, *, batches: bool) -> Scheduler:
    return Scheduler(one_call_a_batch=not batches, **scheduler_options(options))


# ---- the end of the interpreter, and forks ----------------------------------------------

_services: weakref.WeakSet[_Service] = weakref.WeakSet()


def _stop_all() -> None:
    for service in list(_services):
        service.stop(timeout_s=0)


def _after_fork() -> None:
    for service in list(_services):
        service._after_fork()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork)
