"""The program ends while a daemon thread is inside `stop` and waits for a batch that never ends."""

import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from batching import BatchingError, Runner, runner_service


class Hang(Runner):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def _run_batch(self, texts):
        with open(self.path, "w") as pipe:
            pipe.write("x")
        threading.Event().wait()


def call():
    with suppress(BatchingError):
        service.run("x")


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "running"
    os.mkfifo(path)
    service = runner_service(Hang(str(path)))
    service.start()
    threading.Thread(target=call, daemon=True).start()
    path.read_text()  # the batch runs
    threading.Thread(target=service.stop, daemon=True).start()
    while not service._lock.locked():
        pass
