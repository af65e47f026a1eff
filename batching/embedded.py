"""The embedded drivers: who runs a runner's hooks in this process, and when they end.

What it is      `start` gives an engine whose batches are run by one of three drivers:
                `ThreadDriver` (worker threads), `LoopDriver` (one thread with an event
                loop, for hooks that are coroutine functions) and `InlineDriver` (the
                callers' own threads).
Guarantees      1. `_setup`, every `_run_batch` and `_shutdown` of a driver share one
                   thread, unless `concurrency` or `execution` ask for more;
                2. a `_setup` that raises fails all waiting and later calls with its error;
                3. `close` answers what was accepted; with a time limit it fails the rest;
                4. a runner that nobody refers to any more takes its threads with it, the
                   interpreter's end waits for a running batch for LAST_WAIT_S at most, and
                   a forked child starts anew.
Why this shape  Drivers refer to the runner weakly: a thread that waits for work must
                not keep alive what would never give it any.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import threading
import time
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import uvloop

from batching._native.engine import Batch, Engine
from batching.errors import RunnerClosed, RunnerError
from batching.options import BatchOptions
from batching.signature import Signature

__all__ = ["Driver", "Hooks", "start"]

LAST_WAIT_S = 5.0
# A loop's timers are a millisecond coarse: shorter waits are taken turn by turn.
SPIN_NS = 1_200_000


class Hooks:
    """The runner's three hooks, referred to weakly."""

    def __init__(self, runner: Any, run_batch: Callable[..., Any]) -> None:
        self.runner = weakref.ref(runner)
        self.run_batch = weakref.WeakMethod(run_batch)
        self.is_async = any(
            inspect.iscoroutinefunction(hook) for hook in (runner._setup, run_batch, runner._shutdown)
        )

    def setup(self) -> Any:
        runner = self.runner()
        return None if runner is None else runner._setup()

    def shutdown(self) -> Any:
        runner = self.runner()
        return None if runner is None else runner._shutdown()


class Driver(Protocol):
    """Runs the hooks for one engine."""

    def begin(self) -> None:
        """Called once, in the first call's thread, when the runner has its engine."""

    def close(self, timeout_s: float | None) -> None:
        """Ends it, once; see `batching.Runner.close`."""


def start(
    hooks: Hooks,
    signature: Signature | None,
    options: BatchOptions,
    *,
    clock: Callable[[], int] | None = None,
) -> Engine:
    """An engine that runs the hooks' batches; ``engine.driver`` ends it.

    Args:
        signature: of `_run_batch`; None: every call runs alone (SimpleRunner).
        clock: for tests: nanoseconds, instead of CLOCK_MONOTONIC.

    Raises:
        ValueError: hooks that are coroutine functions cannot run inline.
    """
    inline = options.execution == "inline"
    if inline and hooks.is_async:
        raise ValueError('execution="inline" is not for hooks that are async def: use execution="thread"')
    engine = Engine(signature=signature, runner=hooks.runner, options=options, inline=inline, clock=clock)
    driver: _Ended
    if inline:
        driver = InlineDriver(engine, hooks)
    elif hooks.is_async:
        driver = LoopDriver(engine, hooks)
    else:
        driver = ThreadDriver(engine, hooks)
    engine.driver = driver
    _drivers.add(driver)
    runner = hooks.runner()
    if runner is not None:
        weakref.finalize(runner, engine.begin_close).atexit = False
    return engine


class _Ended:
    """What the drivers share: closing once, and not from inside."""

    def __init__(self, engine: Engine, hooks: Hooks) -> None:
        self.engine = engine
        self.hooks = hooks
        self._closing = threading.Lock()
        self._closed = False
        self._is_set_up = False
        self._failure: BaseException | None = None  # of `_shutdown`

    def begin(self) -> None:
        """Called once, in the first call's thread, when the runner has its engine."""

    def close(self, timeout_s: float | None) -> None:
        if self.engine.inside:
            raise RuntimeError(
                "a runner cannot be closed from inside its own hooks: it would wait for itself"
            )
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self.engine.begin_close()
            if not self._wait(timeout_s):
                self.engine.fail_all(
                    lambda: RunnerClosed(
                        f"the runner was closed, and the call had no answer within {timeout_s:g} s"
                    )
                )
        failure, self._failure = self._failure, None
        if failure is not None:
            raise RunnerError.from_exception("_shutdown", failure)

    def _set_up(self) -> bool:
        """Runs `_setup` in this thread; False: it raised, and every call gets its error."""
        self.engine.enter()
        try:
            self.hooks.setup()
        except BaseException as error:
            self.engine.leave()
            self.engine.fail_setup(error)
            return False
        self.engine.leave()
        self._is_set_up = True  # before anybody is told: a close that waits looks at it
        self.engine.ready()
        return True

    def _shut_down(self) -> None:
        """Runs `_shutdown` in this thread; what it raises is kept for `close`."""
        self.engine.enter()
        try:
            self.hooks.shutdown()
        except BaseException as error:
            self._failure = error
        finally:
            self.engine.leave()  # the next thread may have this one's ident

    def _wait(self, timeout_s: float | None) -> bool:
        """Waits for the last answer and for `_shutdown`; False: not in time."""
        raise NotImplementedError


class _Threaded(_Ended):
    """What the drivers with a thread of their own share."""

    def __init__(self, engine: Engine, hooks: Hooks) -> None:
        super().__init__(engine, hooks)
        self._thread = threading.Thread(target=self._run, name="batching-worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """The whole life of the thread: `_setup`, batches, `_shutdown`."""
        raise NotImplementedError

    def _wait(self, timeout_s: float | None) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


class ThreadDriver(_Threaded):
    """Plain hooks, on as many threads as batches may run at once."""

    def _run(self) -> None:
        if not self._set_up():
            return
        helpers: list[threading.Thread] = []
        self._work(helpers)
        for helper in helpers:
            helper.join()
        self._shut_down()

    def _work(self, helpers: list[threading.Thread]) -> None:
        engine = self.engine
        while (batch := engine.next_batch()) is not None:
            # One more thread only once this one has something to do: concurrency may be
            # changed, and mostly one is enough.
            if len(helpers) < engine.slots - 1:
                helper = threading.Thread(
                    target=self._work, args=(helpers,), name="batching-worker", daemon=True
                )
                helpers.append(helper)
                helper.start()
            engine.run(batch)
            del batch


class LoopDriver(_Threaded):
    """Hooks that are coroutine functions, on one event loop in a thread of its own."""

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        engine = self.engine
        engine.enter()
        try:
            await _result_of(self.hooks.setup())
        except BaseException as error:
            engine.fail_setup(error)
        else:
            engine.ready()
            await self._run_batches()
            await self._shut_down_on_loop()
        finally:
            engine.leave()  # the next thread may have this one's ident

    async def _shut_down_on_loop(self) -> None:
        try:
            await _result_of(self.hooks.shutdown())
        except BaseException as error:
            self._failure = error

    async def _run_batches(self) -> None:
        engine = self.engine
        loop = asyncio.get_running_loop()
        work = asyncio.Event()
        engine.on_work(lambda: loop.call_soon_threadsafe(work.set))
        running: set[asyncio.Task[None]] = set()
        while not engine.drained:
            work.clear()
            while (batch := engine.take()) is not None:
                task = loop.create_task(self._run_batch(batch))
                running.add(task)
                task.add_done_callback(running.discard)
            del batch
            await _wait_for_work(work, engine.until_ns)
        engine.on_work(None)

    async def _run_batch(self, batch: Batch) -> None:
        try:
            args, kwargs = self.engine.join(batch)
            model = self.hooks.run_batch()
            assert model is not None
            result = [await _result_of(model(*args, **kwargs))]
            # Before the references to the result are counted: a model may return its argument.
            del args, kwargs
        except BaseException as error:
            self.engine.fail(batch, error)
        else:
            self.engine.complete(batch, result)


class InlineDriver(_Ended):
    """Hooks on the callers' own threads: `_setup` in the first call, `_shutdown` in `close`."""

    def begin(self) -> None:
        self._set_up()

    def _wait(self, timeout_s: float | None) -> bool:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        free = threading.Event()
        self.engine.on_work(free.set)
        while not self.engine.drain_here():
            if not free.wait(None if end_s is None else max(0.0, end_s - time.monotonic())):
                return False
            free.clear()
        if self._is_set_up:
            self._is_set_up = False
            self._shut_down()
        return True


async def _result_of(value: Awaitable[Any] | Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _wait_for_work(work: asyncio.Event, until_ns: int | None) -> None:
    if until_ns is None:
        await work.wait()
        return
    wait_ns = until_ns - time.monotonic_ns()
    if wait_ns <= SPIN_NS:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout((wait_ns - SPIN_NS) * 1e-9):
            await work.wait()
    except TimeoutError:
        pass


# ---- the end of the process, and its children ------------------------------------------

_drivers: weakref.WeakSet[_Ended] = weakref.WeakSet()


def _at_exit() -> None:
    """Lets running batches end and `_shutdown` run, within LAST_WAIT_S for all together."""
    end_s = time.monotonic() + LAST_WAIT_S
    drivers = list(_drivers)
    for driver in drivers:
        driver.engine.begin_close()
    for driver in drivers:
        driver._wait(max(0.0, end_s - time.monotonic()))
        if driver._failure is not None:  # nobody is left to raise it to
            traceback.print_exception(driver._failure)


def _after_fork_in_child() -> None:
    """The threads stayed in the parent: the child's first call starts its own."""
    for driver in list(_drivers):
        runner = driver.hooks.runner()
        if runner is not None:
            runner._bind(None)
    _drivers.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
