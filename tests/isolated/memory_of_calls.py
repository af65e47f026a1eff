"""Ten thousand calls more need no more memory, threads or descriptors than the first two thousand."""

import asyncio
import gc
import os
import threading
import tracemalloc

import numpy as np

from batching import Runner


class Double(Runner):
    def _run_batch(self, x):
        return 2 * x


def descriptors():
    return len(os.listdir("/dev/fd"))


async def calls(runner, count):
    row = np.ones(8, dtype=np.float32)
    for _ in range(count // 100):
        await asyncio.gather(*(runner.async_run(row) for _ in range(100)))


async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # asyncio's debug mode is not to time this
    with Double() as runner:
        tracemalloc.start()
        await calls(runner, 2_000)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0], threading.active_count(), descriptors()
        await calls(runner, 10_000)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0], threading.active_count(), descriptors()
        assert after[1:] == before[1:], (before, after)
        # Less than a byte a call: what grows with calls grows by far more.
        assert after[0] - before[0] < 10_000, (before, after)


asyncio.run(main())
