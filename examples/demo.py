"""`make demo`: the same classifier served one call at a time and in batches, by two worker processes.

A random forest is trained on scikit-learn's handwritten digits. 64 coroutines in this process call it over
ZeroMQ, each with one image at a time, and compare every answer with the model called directly.

    python examples/demo.py [--seconds 8] [--callers 64] [--workers 2]
"""

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import uvloop
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from batching import BatchOptions, Runner, connect, runner_service

WARM_UP_S = 0.5


class Digits(Runner):
    """The model is an attribute set before the workers start, so it travels to them."""

    def __init__(self, model: RandomForestClassifier, options: BatchOptions) -> None:
        super().__init__("digits", options=options)
        self.model = model

    def _run_batch(self, images: np.ndarray) -> np.ndarray:  # (n, 64) -> (n, 10)
        return self.model.predict_proba(images)


@dataclass
class Outcome:
    calls_per_s: float
    mean_batch_rows: float
    p50_ms: float
    p99_ms: float
    checked: int


class Progress:
    """A line that grows on a terminal; elsewhere, one line at the end."""

    def __init__(self, label: str, seconds: float) -> None:
        self.label, self.seconds, self.start = label, seconds, time.perf_counter()

    def show(self, checked: int) -> None:
        if sys.stdout.isatty():
            self._draw("\r", (time.perf_counter() - self.start) / self.seconds, checked, "")

    def close(self, checked: int) -> None:
        self._draw("\r" if sys.stdout.isatty() else "", 1.0, checked, "\n")

    def _draw(self, before: str, share: float, checked: int, after: str) -> None:
        bar = ("#" * min(30, round(30 * share))).ljust(30, ".")
        print(f"{before}{self.label:<12} [{bar}] {checked:>8,} answers checked", end=after, flush=True)


async def drive(
    call, images: np.ndarray, expected: np.ndarray, callers: int, progress: Progress
) -> list[float]:
    """Latencies in seconds of all calls after the warm-up. Raises at the first wrong answer."""
    latencies: list[float] = []
    end = time.perf_counter() + progress.seconds
    measured_from = end - progress.seconds + WARM_UP_S

    async def caller(number: int) -> None:
        row = number
        while (start := time.perf_counter()) < end:
            answer = await call(images[row])
            if start > measured_from:
                latencies.append(time.perf_counter() - start)
            if not np.array_equal(answer, expected[row]):
                raise AssertionError(f"image {row}: the service says {answer}, the model {expected[row]}")
            row = (row + callers) % len(images)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller(number)) for number in range(callers)]
        while not all(task.done() for task in tasks):
            progress.show(len(latencies))
            await asyncio.wait(tasks, timeout=0.1)
    progress.close(len(latencies))
    return latencies


async def measure(label: str, runner: Digits, images: np.ndarray, arguments: argparse.Namespace) -> Outcome:
    expected = runner.model.predict_proba(images)
    async with runner_service(runner, workers=arguments.workers) as service:
        progress = Progress(label, arguments.seconds)
        with connect(service.endpoint, "digits") as digits:
            latencies = await drive(digits.async_run, images, expected, arguments.callers, progress)
        statistics = service.statistics()
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    calls_per_s = len(latencies) / (arguments.seconds - WARM_UP_S)
    return Outcome(calls_per_s, statistics.answered / statistics.batches, p50, p99, len(latencies))


def print_table(outcomes: dict[str, Outcome]) -> None:
    print(f"\n{'':<12}{'calls/s':>10}{'mean batch rows':>18}{'p50 ms':>10}{'p99 ms':>10}")
    for label, one in outcomes.items():
        cells = f"{one.calls_per_s:>10,.0f}{one.mean_batch_rows:>18.1f}{one.p50_ms:>10.1f}{one.p99_ms:>10.1f}"
        print(f"{label:<12}{cells}")
    before, after = outcomes.values()
    print(f"\n{after.calls_per_s / before.calls_per_s:.1f} times the calls per second", end="")
    print(f" at {before.p50_ms / after.p50_ms:.1f} times less latency; every answer equals the model's own.")


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of the two runs")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    print(f"Training a random forest on {len(images)} handwritten digits ...")
    model = RandomForestClassifier(100, random_state=0).fit(images, digits)
    print(
        f"Serving it with {arguments.workers} worker processes to {arguments.callers} concurrent callers.\n"
    )

    batched = BatchOptions()
    runs = {"one by one": replace(batched, max_batch_size=1), "batched": batched}
    outcomes = {
        label: await measure(label, Digits(model, options), images, arguments)
        for label, options in runs.items()
    }
    print_table(outcomes)


if __name__ == "__main__":
    uvloop.run(main())
