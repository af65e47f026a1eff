"""Hosts: the threads or the loop in which a worker's runner lives.

Guarantees      1. `_setup`, every batch (with concurrency 1) and `_shutdown` run in the
                   thread that called `run`, or on one loop in it;
                2. every batch that the link gives out is answered, before `_shutdown`.
Not promised    an order between batches when concurrency is above 1.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from .model import Batch, Model

__all__ = ["AsyncHost", "Source", "ThreadHost", "host_of"]


class Source(Protocol):
    """Where batches come from and answers go: a link."""

    def get(self) -> Batch | None:
        """The next batch, None after the last; for any number of threads."""

    def attach(self, deliver: Callable[[Batch | None], None]) -> None:
        """Before batches come: they, and None after the last, are delivered in the running loop."""

    def send(self, batch: Batch, answer: Any) -> None:
        """From any thread."""


class ThreadHost:
    """For an ordinary `_run_batch`. An asynchronous `_setup` gets a loop that is not kept running."""

    def __init__(self, runner: Any, model: Model, concurrency: int) -> None:
        self._runner = runner
        self._model = model
        self._concurrency = concurrency

    def run(self, source: Source, ready: Callable[[], None]) -> None:
        """`_setup`, then `ready()`, then the batches, then `_shutdown`."""
        with asyncio.Runner() as loop:
            _resolve(loop, self._runner._setup())
            ready()
            if self._concurrency == 1:
                self._serve(source)
            else:
                self._serve_with_threads(source)
            _resolve(loop, self._runner._shutdown())

    def _serve(self, source: Source) -> None:
        while (batch := source.get()) is not None:
            source.send(batch, self._model.run(batch))
            del batch  # its memory is the model's; do not keep it while idle

    def _serve_with_threads(self, source: Source) -> None:
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def serve() -> None:
            try:
                self._serve(source)
                ended.put(None)
            except BaseException as error:
                ended.put(error)

        for number in range(self._concurrency):
            threading.Thread(target=serve, name=f"batch_{number}", daemon=True).start()
        for _ in range(self._concurrency):
            error = ended.get()
            if error is not None:  # ours: the other threads end with the process
                raise error


class AsyncHost:
    """For an `async def _run_batch`: everything on one loop, which runs until the end."""

    def __init__(self, runner: Any, model: Model) -> None:
        self._runner = runner
        self._model = model

    def run(self, source: Source, ready: Callable[[], None]) -> None:
        """As ThreadHost's."""
        with asyncio.Runner(loop_factory=_new_loop) as loop:
            loop.run(self._main(source, ready))

    async def _main(self, source: Source, ready: Callable[[], None]) -> None:
        last = asyncio.get_running_loop().create_future()
        tasks: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            error = task.exception()
            if error is not None and not last.done():  # ours: the batch has no answer
                last.set_exception(error)

        def deliver(batch: Batch | None) -> None:
            if batch is None:
                if not last.done():
                    last.set_result(None)
                return
            # The dispatcher never sends more than there are credits: no limit is needed here.
            task = asyncio.ensure_future(self._answer(source, batch))
            tasks.add(task)
            task.add_done_callback(done)

        await _awaited(self._runner._setup())
        source.attach(deliver)
        ready()
        await last
        await asyncio.gather(*tasks)
        await _awaited(self._runner._shutdown())

    async def _answer(self, source: Source, batch: Batch) -> None:
        source.send(batch, await self._model.run_async(batch))


def host_of(runner: Any, model: Model, concurrency: int) -> ThreadHost | AsyncHost:
    if inspect.iscoroutinefunction(model.run_batch):
        return AsyncHost(runner, model)
    return ThreadHost(runner, model, concurrency)


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
