"""Does anything grow, hang or go astray while workers are killed at random?

Not a benchmark: run it by hand before a release. A service of three workers is called for ten minutes by
its own process (threads and coroutines) and by a connected client process, with arrays, frames and lists of
many sizes, with deadlines and cancels; every second or so a random worker gets SIGKILL. Every answer must be
the right one, or an error of the package's own family. With nothing in flight, after a tenth of the time and
at the end: descriptors, by kind too, threads and resident memory of the service's process and of the client.

How to run: python bench/soak.py [--minutes 10] [--seed 0] [--plane native|plain] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

from batching import BatchingError, BatchOptions, Runner, connect, runner_service

sys.path.insert(0, str(Path(__file__).parent))
from processes import descriptor_kinds, descriptors, memory_bytes, threads, workers_of

RESULT = Path(__file__).parent / "results" / "soak.json"


class Echo(Runner):
    def _run_batch(self, x):
        return x


def payload(rng: random.Random):
    """A batch of some kind and size."""
    rows = rng.choice([1, 1, 2, 5, 40, 300])
    mark = rng.randrange(1 << 30)
    kind = rng.randrange(10)
    if kind < 5:
        return np.full((rows, rng.choice([1, 128])), mark, dtype=np.float64)
    if kind < 6:
        return np.full((rows, 30_000), mark % 100, dtype=np.uint8)
    if kind < 8:
        return pd.DataFrame({"a": np.arange(rows) + mark, "b": [f"text {mark}"] * rows})
    return [{"mark": mark, "row": row} for row in range(rows)]


def same(answer, x) -> bool:
    if isinstance(x, np.ndarray):
        return isinstance(answer, np.ndarray) and answer.dtype == x.dtype and np.array_equal(answer, x)
    return x.equals(answer) if isinstance(x, pd.DataFrame) else answer == x


class Tally(collections.Counter):
    def note(self, call) -> None:
        """Runs `call`, which answers whether it was right; counts what came of it."""
        try:
            right = call()
        except BatchingError as error:
            self[type(error).__name__] += 1
        else:
            self["answered" if right else "wrong"] += 1


def budget(rng: random.Random):
    return rng.choice([None, None, None, 5_000, 50, 2])


def call_in_thread(handle, seed: int, stop: threading.Event, tally: Tally) -> None:
    rng = random.Random(seed)
    while not stop.is_set():
        x = payload(rng)
        tally.note(lambda x=x: same(handle.run_batch(x, deadline_ms=budget(rng)), x))


async def call_in_loop(handle, seed: int, stop: threading.Event, tally: Tally) -> None:
    rng = random.Random(seed)

    async def one() -> None:
        while not stop.is_set():
            x = payload(rng)
            task = asyncio.ensure_future(handle.async_run_batch(x, deadline_ms=budget(rng)))
            if rng.random() < 0.05:
                await asyncio.sleep(rng.random() * 0.002)
                task.cancel()
            try:
                answer = await task
                tally["answered" if same(answer, x) else "wrong"] += 1
            except asyncio.CancelledError:
                tally["cancelled"] += 1
            except BatchingError as error:
                tally[type(error).__name__] += 1

    await asyncio.gather(*(one() for _ in range(20)))


def callers(handle, seed: int, stop: threading.Event) -> tuple[list[threading.Thread], Tally]:
    tally = Tally()
    made = [threading.Thread(target=call_in_thread, args=(handle, seed + i, stop, tally)) for i in range(3)]
    made.append(threading.Thread(target=lambda: asyncio.run(call_in_loop(handle, seed + 9, stop, tally))))
    for thread in made:
        thread.start()
    return made, tally


def measured() -> dict[str, object]:
    gc.collect()
    pid = os.getpid()
    return {
        "descriptors": descriptors(pid), "kinds": descriptor_kinds(pid), "threads": threads(pid),
        "memory_mb": memory_bytes(pid) >> 20,
    }  # fmt: skip


def client(endpoint: str, seed: int, minutes: float, pipe) -> None:
    handle = connect(endpoint, "echo")
    numbers, total = [], Tally()
    for share in (0.1, 0.9):
        stop = threading.Event()
        made, tally = callers(handle, seed, stop)
        time.sleep(minutes * 60 * share)
        stop.set()
        for thread in made:
            thread.join()
        numbers.append(measured())
        total.update(tally)
    handle.close()
    pipe.send((numbers, dict(total)))


def kill_some(seed: int, stop: threading.Event, killed: list[int]) -> None:
    rng = random.Random(seed)
    while not stop.wait(rng.uniform(0.3, 2.0)):
        workers = workers_of(os.getpid())
        if workers:
            killed.append(rng.choice(workers))
            os.kill(killed[-1], signal.SIGKILL)


def phase(service, seed: int, seconds: float, killed: list[int], total: Tally) -> dict[str, object]:
    """Calls and kills for a while, then quiet; what the process holds then."""
    stop = threading.Event()
    made, tally = callers(service, seed, stop)
    made.append(threading.Thread(target=kill_some, args=(seed, stop, killed)))
    made[-1].start()
    time.sleep(seconds)
    stop.set()
    for thread in made:
        thread.join(120)
        if thread.is_alive():
            raise SystemExit("a caller hangs")
    total.update(tally)
    until = time.monotonic() + 60
    while service.statistics().workers_ready < 3 and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    return measured()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plane", choices=("native", "plain"), default=None)
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name} into bench/results")
    options = parser.parse_args()
    if options.plane:
        os.environ["BATCHING_DATA_PLANE"] = options.plane
    context = multiprocessing.get_context("spawn")
    killed: list[int] = []
    total = Tally()
    with runner_service(Echo("echo", options=BatchOptions(max_batch_size=64)), workers=3) as service:
        ours, theirs = context.Pipe()
        its_arguments = (service.endpoint, options.seed + 100, options.minutes, theirs)
        other = context.Process(target=client, args=its_arguments)
        other.start()
        early = phase(service, options.seed, options.minutes * 6, killed, total)
        late = phase(service, options.seed + 1, options.minutes * 54, killed, total)
        client_numbers, client_total = ours.recv()
        other.join()
    report = {
        "minutes": options.minutes, "kills": len(killed), "service": dict(total), "client": client_total,
        "service_after_a_tenth": early, "service_at_the_end": late,
        "client_after_a_tenth": client_numbers[0], "client_at_the_end": client_numbers[1],
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if options.json:
        what = {"bench": "soak", "plane": os.environ.get("BATCHING_DATA_PLANE", ""), "seed": options.seed}
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({**what, "machine": machine, **report}, indent=1) + "\n")
    if total["wrong"] or client_total.get("wrong"):
        raise SystemExit("wrong answers")


if __name__ == "__main__":
    sys.exit(main())
