"""A service that is never stopped: its workers and its directory end with this process."""

import atexit
import os
from pathlib import Path

import numpy as np

from batching import Runner


class Double(Runner):
    def _run_batch(self, x):
        return 2 * x


def nothing_is_left():
    # What an atexit function raises is printed, and leaves the status as it is.
    if folder.exists():
        print(f"{folder} is still there", flush=True)
        os._exit(1)


atexit.register(nothing_is_left)  # before the library's own, so it runs after it

from batching import runner_service  # noqa: E402

service = runner_service(Double(), workers=1)
service.start()
folder = Path(service.endpoint.removeprefix("ipc://")).parent
assert folder.exists()
assert np.array_equal(service.run(np.ones(3)), np.full(3, 2.0))
