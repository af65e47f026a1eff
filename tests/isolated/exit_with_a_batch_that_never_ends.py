"""The program ends while a model hangs and a daemon thread waits for it."""

import threading

from batching import Runner

started = threading.Event()


class Hang(Runner):
    def _run_batch(self, texts):
        started.set()
        threading.Event().wait()


runner = Hang()
threading.Thread(target=runner.run, args=("x",), daemon=True).start()
assert started.wait(30)
