"""Hosts: the thread or loop in which a worker's runner lives.

Guarantees      1. `_setup`, every batch (with concurrency 1) and `_shutdown` run in the
                   thread that called `run`, or on one loop in it;
                2. `work` is called once for every batch that was delivered.
Not promised    an order between batches when concurrency is above 1.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .wire import Rows

__all__ = ["AsyncHost", "Host", "ThreadHost", "host_of"]


class Host:
    """Runs a runner's hooks. `deliver` and `leave` may be called from any thread."""

    def __init__(self, runner: Any, concurrency: int) -> None:
        self._runner = runner
        self._concurrency = concurrency

    def run(self, ready: Callable[[], None], work: Callable[[Rows], Any]) -> None:
        """`_setup`, then `ready()`, then `work` of each batch until `leave`, then `_shutdown`."""
        raise NotImplementedError

    def deliver(self, batch: Rows) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """Finish what was delivered, then shut down."""
        raise NotImplementedError


class ThreadHost(Host):
    """For an ordinary `_run_batch`. An asynchronous `_setup` gets a loop that is not kept running."""

    def __init__(self, runner: Any, concurrency: int) -> None:
        super().__init__(runner, concurrency)
        self._inbox: Any = queue.SimpleQueue()

    def take_from(self, inbox: Any) -> None:
        """Batches come from `inbox.get()`, None at the end, and not through `deliver` and `leave`."""
        self._inbox = inbox

    def deliver(self, batch: Rows) -> None:
        self._inbox.put(batch)

    def leave(self) -> None:
        self._inbox.put(None)

    def run(self, ready: Callable[[], None], work: Callable[[Rows], Any]) -> None:
        with asyncio.Runner() as loop:
            _resolve(loop, self._runner._setup())
            ready()
            if self._concurrency == 1:
                self._one_by_one(work)
            else:
                self._several(work)
            _resolve(loop, self._runner._shutdown())

    def _one_by_one(self, work: Callable[[Rows], Any]) -> None:
        while (batch := self._inbox.get()) is not None:
            work(batch)
            del batch  # its memory is the model's; do not keep it while idle

    def _several(self, work: Callable[[Rows], Any]) -> None:
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="batch") as pool:
            while (batch := self._inbox.get()) is not None:
                pool.submit(work, batch)
                del batch


class AsyncHost(Host):
    """For an `async def _run_batch`: everything on one loop, which runs until the end."""

    def __init__(self, runner: Any, concurrency: int) -> None:
        super().__init__(runner, concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[Rows | None] = []

    def deliver(self, batch: Rows) -> None:
        assert self._loop is not None  # nothing is delivered before `ready`
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, batch)

    def leave(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._inbox.put_nowait, None)

    def run(self, ready: Callable[[], None], work: Callable[[Rows], Any]) -> None:
        with asyncio.Runner(loop_factory=_new_loop) as loop:
            loop.run(self._main(ready, work))

    async def _main(self, ready: Callable[[], None], work: Callable[[Rows], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Rows | None] = asyncio.Queue()
        await _awaited(self._runner._setup())
        ready()
        tasks: set[asyncio.Task[Any]] = set()
        while (batch := await self._inbox.get()) is not None:
            # The dispatcher never sends more than there are credits: no limit is needed here.
            task = asyncio.ensure_future(work(batch))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            del batch, task
        await asyncio.gather(*tasks)
        await _awaited(self._runner._shutdown())


def host_of(runner: Any, run_batch: Callable[..., Any], concurrency: int) -> Host:
    kind = AsyncHost if inspect.iscoroutinefunction(run_batch) else ThreadHost
    return kind(runner, concurrency)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _resolve(loop: asyncio.Runner, value: Any) -> None:
    if inspect.isawaitable(value):
        loop.run(_awaited(value))


async def _awaited(value: Awaitable[Any] | Any) -> None:
    if inspect.isawaitable(value):
        await value
