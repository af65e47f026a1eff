"""A runner that is never closed, called from threads and from two event loops."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from batching import Runner


class Double(Runner):
    def _run_batch(self, x):
        return 2 * x


runner = Double()
rows = np.arange(40.0).reshape(20, 2)


async def all_at_once():
    return await asyncio.gather(*(runner.async_run(row) for row in rows))


with ThreadPoolExecutor(8) as pool:
    assert np.array_equal(list(pool.map(runner.run, rows)), 2 * rows)
for _ in range(2):
    assert np.array_equal(asyncio.run(all_at_once()), 2 * rows)
