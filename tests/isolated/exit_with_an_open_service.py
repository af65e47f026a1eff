"""A service that is never stopped: its workers end with this process."""

import numpy as np

from batching import Runner, runner_service


class Double(Runner):
    def _run_batch(self, x):
        return 2 * x


service = runner_service(Double(), workers=1)
service.start()
assert np.array_equal(service.run(np.ones(3)), np.full(3, 2.0))
