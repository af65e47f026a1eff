"""A connected handle that is never closed, although its service was stopped."""

import numpy as np

from batching import Runner, connect, runner_service


class Double(Runner):
    def _run_batch(self, x):
        return 2 * x


with runner_service(Double(), workers=1) as service:
    handle = connect(service.endpoint, "Double")
    assert np.array_equal(handle.run(np.ones(3)), np.full(3, 2.0))
