"""A forked child and an embedded runner: each process has an engine of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os, warnings
import numpy as np
from batching import BatchOptions, Runner

warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads

class Tell(Runner):
    def _setup(self):
        self.pid = os.getpid()
    def _run_batch(self, x):
        return np.full(len(x), self.pid)

async def call(runner):
    return await runner.async_run(np.zeros(1))

runner = Tell(options=BatchOptions(execution={execution!r}))
assert runner.run(np.zeros(1)) == asyncio.run(call(runner)) == os.getpid()
child = os.fork()
if child == 0:
    assert runner.run(np.zeros(1)) == asyncio.run(call(runner)) == os.getpid()
    assert runner.statistics().calls == 2
    runner.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert runner.run(np.zeros(1)) == os.getpid()
assert runner.statistics().calls == 3
print("both")
"""


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["thread", "inline"])
def test_a_forked_child_starts_an_engine_of_its_own_at_its_first_call(execution):
    program = PROGRAM.format(execution=execution)
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("both\n", "", 0)
