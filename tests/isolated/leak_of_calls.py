"""Calls that were answered, failed, refused or cancelled keep nothing alive."""

import asyncio
import contextlib
import gc
import threading
import weakref

from batching import BatchingError, Runner


class Item:
    """Can be referred to weakly, so that a test sees when it dies."""


class Echo(Runner):
    def _run_batch(self, items):
        return [ValueError("odd one") if getattr(item, "is_bad", False) else item for item in items]


def is_gone(reference):
    for _ in range(5):  # the worker's last references go when it takes its next batch, or is told to end
        if gc.collect() == 0 and reference() is None:
            return True
    return reference() is None


async def answered(runner, item):
    await runner.async_run(item)


async def failed(runner, item):
    item.is_bad = True
    try:
        await runner.async_run(item)
    except (ValueError, BatchingError):
        return
    raise AssertionError("the call should have failed")


async def late(runner, item):
    with contextlib.suppress(BatchingError):
        await runner.async_run(item, deadline_ms=1e-6)


async def cancelled(runner, item):
    task = asyncio.ensure_future(runner.async_run(item))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def never_awaited(runner, item):
    runner.async_run(item).close()


threads = threading.active_count()
for way in (answered, failed, late, cancelled, never_awaited):
    with Echo() as runner:
        item = Item()
        reference = weakref.ref(item)
        asyncio.run(way(runner, item))
        del item
        runner.run(Item())
    assert is_gone(reference), (
        f"{way.__name__}: the payload is still referred to by {gc.get_referrers(reference())}"
    )
assert threading.active_count() == threads, threading.enumerate()

runner = Echo()
runner.run(Item())
reference = weakref.ref(runner)
runner.close()
del runner
assert is_gone(reference), f"a closed runner is still referred to by {gc.get_referrers(reference())}"
