"""What does a service cost that does nothing, and how soon is a death noticed?

A service of four workers: CPU of its process and of the workers over 10 idle seconds, as a share of one
core, right after traffic. Then one worker is killed (SIGKILL) with a call in its hands, others being free:
milliseconds until another one has run the call and it is answered, median and largest of five deaths.

How to run: python bench/bench_idle.py [--seconds 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from batching import BatchOptions, Runner, runner_service

sys.path.insert(0, str(Path(__file__).parent))
from processes import cpu_s, machine, workers_of

RESULT = Path(__file__).parent / "results" / "idle.json"


class Sleepy(Runner):
    """Tells its process id; told to, it first sleeps for a minute, once."""

    def _setup(self) -> None:
        self.flag = Path(self.folder) / "sleep"

    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        try:
            self.flag.rename(self.flag.with_name(f"asleep-{os.getpid()}"))
        except FileNotFoundError:
            return np.full(len(x), os.getpid())
        time.sleep(60)
        return x


def notice_ms(service, folder: Path) -> float:
    """One death with a call in hand: from the signal to the answer that another worker gave."""
    (folder / "sleep").touch()
    answered: list[float] = []

    def call() -> None:
        service.run(np.zeros(4))
        answered.append(time.perf_counter())

    thread = threading.Thread(target=call)
    thread.start()
    while not (asleep := list(folder.glob("asleep-*"))):
        time.sleep(0.001)
    pid = int(asleep[0].name.partition("-")[2])
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    thread.join()
    asleep[0].unlink()
    return (answered[0] - killed) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name} into bench/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runner = Sleepy("sleepy", options=BatchOptions(max_wait_ms=0))
        runner.folder = folder
        with runner_service(runner, workers=4) as service:
            for _ in range(200):
                service.run(np.zeros(4))
            time.sleep(0.5)
            pids = [os.getpid(), *workers_of(os.getpid())]
            before = sum(map(cpu_s, pids))
            time.sleep(options.seconds)
            share = (sum(map(cpu_s, pids)) - before) / options.seconds
            print(f"idle: {share * 100:.4f} % of a core, over {options.seconds:g} s")
            deaths = []
            for _ in range(5):
                deaths.append(notice_ms(service, Path(folder)))
                while service.statistics().workers_ready < 4:
                    time.sleep(0.05)
            middle, largest = statistics.median(deaths), max(deaths)
            print(f"a death is made good: median {middle:.1f} ms, largest {largest:.1f} ms")
    if options.json:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({
            "bench": "idle", "machine": machine(),
            "plane": os.environ.get("BATCHING_DATA_PLANE", ""), "seconds": options.seconds,
            "idle_share_of_a_core": round(share, 6), "noticed_ms": [round(ms, 2) for ms in deaths],
        }, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
