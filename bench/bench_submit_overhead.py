"""What does one call through the engine cost, when the model costs nothing?

A no-op model (it returns its input), one float32 array of shape (128,) per call, closed loop: each of N
coroutines calls again as soon as it has its answer, all on one event loop. Every answer is checked.

Beside `Runner`, in the same process and the same run, in interleaved rounds:
  greedy        what an expert writes by hand in 30 lines of asyncio: all that was submitted in one turn of
                the loop is one batch, each caller gets a row of its own. Inline, and the model on a thread.
  future only   makes and resolves a future per call and nothing else: the limit for engines on futures.

Printed: medians over the rounds of calls/s and of CPU microseconds per call (the whole process: loop, callers
and threads); then calls/s as a multiple of greedy's with the same execution, the median of the rounds' own
ratios.

Last result (bench/results/submit_overhead.json; 2 cores, uvloop): Runner inline makes 1.79, 1.40,
1.35 and 1.39 times the calls of greedy at 1, 16, 256, 1024 callers; on a thread 1.09, 1.54, 1.49, 1.14 times.

How to run: python bench/bench_submit_overhead.py [--asyncio] [--rounds 5] [--seconds 0.3] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import queue
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from batching import BatchOptions, Runner

COLUMNS = 128
MAX_BATCH_SIZE = 128
RESULT = Path(__file__).parent / "results" / "submit_overhead.json"


def no_op(x: np.ndarray) -> np.ndarray:
    return x


class GreedyInline:
    """All that came in one turn of the loop runs in batches at its end, on the loop."""

    def __init__(self, model: Callable) -> None:
        self.model, self.loop = model, asyncio.get_running_loop()
        self.items: list = []
        self.futures: list = []

    def __call__(self, x: np.ndarray) -> asyncio.Future:
        future = self.loop.create_future()
        if not self.items:
            self.loop.call_soon(self.flush)
        self.items.append(x)
        self.futures.append(future)
        return future

    def flush(self) -> None:
        items, self.items = self.items, []
        futures, self.futures = self.futures, []
        for first in range(0, len(items), MAX_BATCH_SIZE):
            part = items[first : first + MAX_BATCH_SIZE]
            result = self.model(np.concatenate(part).reshape(len(part), -1))
            for future, row in zip(futures[first : first + MAX_BATCH_SIZE], result, strict=True):
                if not future.done():
                    future.set_result(row.copy())


class GreedyThread:
    """All that came while the thread was busy is its next batch."""

    def __init__(self, model: Callable) -> None:
        self.model, self.loop = model, asyncio.get_running_loop()
        self.waiting: list = []
        self.is_busy = False
        self.batches: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def __call__(self, x: np.ndarray) -> asyncio.Future:
        future = self.loop.create_future()
        self.waiting.append((x, future))
        if not self.is_busy:
            self.is_busy = True
            self.loop.call_soon(self.start_batch)
        return future

    def start_batch(self) -> None:
        batch = self.waiting[:MAX_BATCH_SIZE]
        del self.waiting[:MAX_BATCH_SIZE]
        self.is_busy = bool(batch)
        if batch:
            self.batches.put(batch)

    def work(self) -> None:
        while batch := self.batches.get():
            items, futures = zip(*batch, strict=True)
            result = self.model(np.concatenate(items).reshape(len(items), -1))
            self.loop.call_soon_threadsafe(self.answer, futures, [row.copy() for row in result])

    def answer(self, futures: tuple, rows: list) -> None:
        self.start_batch()
        for future, row in zip(futures, rows, strict=True):
            if not future.done():
                future.set_result(row)

    def close(self) -> None:
        self.batches.put(None)
        self.thread.join()


class FutureOnly:
    """The least that an engine on futures does: make one, resolve it in the next turn."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting: list = []

    def __call__(self, x: np.ndarray) -> asyncio.Future:
        future = self.loop.create_future()
        if not self.waiting:
            self.loop.call_soon(self.flush)
        self.waiting.append((x, future))
        return future

    def flush(self) -> None:
        batch, self.waiting = self.waiting, []
        for x, future in batch:
            future.set_result(x)


class NoOp(Runner):
    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return x


class Sample(NamedTuple):
    calls_per_s: float
    cpu_us_per_call: float


Call = Callable[[np.ndarray], Awaitable[np.ndarray]]


async def closed_loop(call: Call, callers: int, seconds: float) -> Sample:
    """Warms up for a tenth of the time, then measures."""
    is_running = True
    counts = [0] * callers

    async def caller(number: int) -> None:
        x = np.full(COLUMNS, number, dtype=np.float32)
        mine = x.item(0)
        while is_running:
            answer = await call(x)
            if answer.item(0) != mine:
                raise AssertionError(f"caller {number} got the row of caller {answer.item(0)}")
            counts[number] += 1
        np.testing.assert_array_equal(answer, x)

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(number))
        await asyncio.sleep(seconds / 10)
        before, cpu, wall = sum(counts), time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        calls = sum(counts) - before
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        is_running = False
    return Sample(calls / wall, cpu / calls * 1e6)


async def measure(contestant: str, callers: int, seconds: float) -> Sample:
    match contestant:
        case "future only":
            return await closed_loop(FutureOnly(), callers, seconds)
        case "greedy inline":
            return await closed_loop(GreedyInline(no_op), callers, seconds)
        case "greedy thread":
            with closing(GreedyThread(no_op)) as greedy:
                return await closed_loop(greedy, callers, seconds)
        case "Runner inline" | "Runner thread":
            execution = contestant.removeprefix("Runner ")
            with NoOp(options=BatchOptions(max_batch_size=MAX_BATCH_SIZE, execution=execution)) as runner:
                return await closed_loop(runner.async_run, callers, seconds)
    raise ValueError(contestant)


CONTESTANTS = ("greedy inline", "Runner inline", "greedy thread", "Runner thread", "future only")


def medians(samples: list[Sample]) -> Sample:
    return Sample(*(statistics.median(column) for column in zip(*samples, strict=True)))


def print_table(samples: dict[str, dict[int, list[Sample]]], callers: list[int]) -> None:
    def row(name: str, cells: Iterable[str]) -> None:
        print(f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells))

    row("\ncalls/s with N callers ", map(str, callers))
    for name, by_callers in samples.items():
        row(name, (f"{medians(by_callers[n]).calls_per_s:,.0f}" for n in callers))
    row("\nCPU us per call        ", map(str, callers))
    for name, by_callers in samples.items():
        row(name, (f"{medians(by_callers[n]).cpu_us_per_call:.2f}" for n in callers))
    row("\ncalls/s, times greedy  ", map(str, callers))
    for name in ("Runner inline", "Runner thread", "future only"):
        row(name, (f"{times_greedy(samples, name, n):.2f}" for n in callers))


def times_greedy(samples: dict[str, dict[int, list[Sample]]], name: str, callers: int) -> float:
    """Median over the rounds: what ran one after the other met the same machine."""
    greedy = "greedy thread" if name.endswith("thread") else "greedy inline"
    pairs = zip(samples[name][callers], samples[greedy][callers], strict=True)
    return statistics.median(one.calls_per_s / other.calls_per_s for one, other in pairs)


def write_json(samples: dict[str, dict[int, list[Sample]]], arguments: argparse.Namespace) -> None:
    RESULT.parent.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    setting = {"loop": "asyncio" if arguments.asyncio else f"uvloop {uvloop.__version__}"}
    setting |= {"rounds": arguments.rounds, "seconds": arguments.seconds}
    numbers = {name: {n: medians(row[n])._asdict() for n in row} for name, row in samples.items()}
    for name in ("Runner inline", "Runner thread", "future only"):
        for n in arguments.callers:
            numbers[name][n]["times_greedy"] = times_greedy(samples, name, n)
    RESULT.write_text(
        json.dumps({"machine": machine, "setting": setting, "results": numbers}, indent=1) + "\n"
    )
    print(f"\nwritten: {RESULT}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--asyncio", action="store_true", help="the loop of the standard library, not uvloop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name} to bench/results")
    arguments = parser.parse_args()

    new_loop = asyncio.new_event_loop if arguments.asyncio else uvloop.new_event_loop
    samples: dict[str, dict[int, list[Sample]]] = {
        name: {n: [] for n in arguments.callers} for name in CONTESTANTS
    }
    for round_ in range(arguments.rounds):
        print(f"\rround {round_ + 1} of {arguments.rounds}", end="", file=sys.stderr, flush=True)
        for callers in arguments.callers:
            for name in CONTESTANTS:
                with asyncio.Runner(loop_factory=new_loop) as loop:
                    samples[name][callers].append(loop.run(measure(name, callers, arguments.seconds)))
    print(file=sys.stderr)
    print_table(samples, arguments.callers)
    if arguments.json:
        write_json(samples, arguments)


if __name__ == "__main__":
    main()
