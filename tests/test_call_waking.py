"""A caller is woken once, whenever its outcome comes."""

from __future__ import annotations

import asyncio

from batching._native.calls import Handle, settle


class HeldEngine:
    """Keeps every call until the test settles it."""

    max_latency_ms = None

    def __init__(self) -> None:
        self.calls: list = []

    def submit(self, call: object) -> None:
        self.calls.append(call)

    def cancel(self, call: object) -> None:
        self.calls.remove(call)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_outcome_before_the_task_waits_wakes_it_once() -> None:
    async def main() -> None:
        handle, engine, woken = Handle(), HeldEngine(), []
        handle._bind(engine)
        call = handle.async_run(1)
        waiter = call.send(None)
        settle([(call, "answer", None)])  # as a worker thread may, between the yield and the next line
        waiter.add_done_callback(woken.append)
        await turns()
        assert len(woken) == 1
        call.close()

    asyncio.run(main())


def test_outcome_after_the_task_waits_wakes_it_once() -> None:
    async def main() -> None:
        handle, engine = Handle(), HeldEngine()
        handle._bind(engine)
        task = asyncio.ensure_future(handle.async_run(1))
        await turns(2)
        settle([(engine.calls[0], "answer", None)])
        assert await task == "answer"

    asyncio.run(main())
